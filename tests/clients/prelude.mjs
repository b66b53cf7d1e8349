// What every test of the JavaScript SDK begins with: a client, and the few things that all of them do.

import { strict as assert } from "node:assert";
import * as L from "@aws-sdk/client-lambda";

const connect = (accessKeyId = "any", secretAccessKey = "any", sessionToken = undefined) =>
  new L.LambdaClient({
    endpoint: process.env.ENDPOINT,
    region: "us-east-1",
    credentials: { accessKeyId, secretAccessKey, sessionToken },
    maxAttempts: 1,
  });
let client = connect();
const waiter = { get client() { return client; }, minDelay: 1, maxDelay: 1, maxWaitTime: 60 };
const hello = { FunctionName: "hello" };

async function create(name, more) {
  const code = { PackageType: "Image", Code: { ImageUri: process.env.IMAGE }, Role: process.env.ROLE };
  const made = await client.send(
    new L.CreateFunctionCommand({ FunctionName: name, MemorySize: 256, Timeout: 20, ...code, ...more }));
  await L.waitUntilFunctionActiveV2(waiter, { FunctionName: name });
  return made;
}

async function invoke(event, more) {
  const answer = await client.send(new L.InvokeCommand({ ...hello, Payload: JSON.stringify(event), ...more }));
  const text = answer.Payload?.transformToString();
  return { ...answer, payload: text && JSON.parse(text) };
}

async function refused(kind, call) {
  try {
    await call;
  } catch (error) {
    assert.ok(error instanceof kind, `${error}`);
    return error;
  }
  assert.fail(`${kind.name} was expected`);
}
