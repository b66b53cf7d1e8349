// A function that does what it is asked to, for tests: the same as ../app.py, and an answer that is streamed.

import { writeFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";

console.log("loading");
if (process.env.FAIL_INIT === "exception") throw new RangeError("cannot begin");
if (process.env.FAIL_INIT === "exit") process.exit(7);
let invocations = 0;

class AsAsked extends Error {
  name = "AsAsked";
}

async function act(event, context) {
  invocations += 1;
  console.log("got", JSON.stringify(event).slice(0, 200));
  switch (event?.do) {
    case "fail":
      throw new AsAsked("as asked");
    case "exit":
      process.exit(event.code ?? 3);
    case "sleep":
      await sleep(event.seconds * 1000);
      break;
    case "memory": {
      const held = [];
      for (let mb = 0; mb < event.mb; mb += 1) held.push(Buffer.alloc(1 << 20, 1));
      break;
    }
    case "environment":
      return process.env;
    case "write":
      try {
        writeFileSync(event.path, Buffer.alloc(event.bytes, "x"));
        return { written: event.bytes };
      } catch (error) {
        return { error: error.code };
      }
    case "large":
      return "x".repeat(event.bytes);
    case "length":
      return event.text.length;
  }
  return {
    invocations,
    event,
    id: context.awsRequestId,
    arn: context.invokedFunctionArn,
    remaining: context.getRemainingTimeInMillis(),
    client: context.clientContext?.custom ?? null,
    group: context.logGroupName,
    stream: context.logStreamName,
    memory: Number(context.memoryLimitInMB),
    name: context.functionName,
    version: context.functionVersion,
  };
}

export const handler = (event, context) => act(event, context);

// Parts of an answer, each when the one before is out; `fail` after them ends it with an error.
export const streaming = awslambda.streamifyResponse(async (event, answer) => {
  answer.setContentType("text/plain");
  for (let part = 0; part < event.parts; part += 1) {
    answer.write(`${part}:${"x".repeat(event.bytes)}\n`);
    await sleep(event.pause ?? 0);
  }
  if (event.fail) throw new AsAsked("in the middle");
  answer.end();
  await answer.finished?.();
});
