//! Clients that are not Python's: the AWS CLI, the JavaScript SDK, SAM's CLI and cargo-lambda, as their users run them.

use std::process::Command;

use super::harness::{Service, clients, run};
use crate::stores::only_on_files;
use crate::world::{World, repository, test_image};

/// A client by its name, pointed at the service as its documentation says, with functions of the smallest image.
fn client(service: &Service, world: &World, name: &str) -> Command {
    let mut client = service.client(world, name.as_ref());
    let path = std::env::var("PATH").unwrap();
    client.env("PATH", format!("{}:{path}", clients().join("bin").display()));
    client.env("IMAGE", test_image("lambda-rust")).env("ROLE", "arn:aws:iam::000000000000:role/anything");
    client.env("AWS_ENDPOINT_URL", &service.endpoint).env("AWS_DEFAULT_REGION", "us-east-1");
    client.env("AWS_ACCESS_KEY_ID", "any").env("AWS_SECRET_ACCESS_KEY", "any").env("AWS_MAX_ATTEMPTS", "1");
    client
}

/// A service whose callers are known.
fn with_keys(world: &World) -> Service {
    let keys = world.path("access-keys");
    let lines = [
        "AKIDONE secret-of-one default",
        "AKIDTWO secret-of-two other",
        "ASIDONE secret-for-a-while default token-of-one",
    ];
    std::fs::write(&keys, lines.join("\n")).unwrap();
    Service::start(world, &["--access-keys", keys.to_str().unwrap()])
}

#[track_caller]
fn javascript(service: &Service, world: &World, script: &str) {
    let mut node = client(service, world, "node");
    // Modules are looked for where a program is, and one that is read has no place but this.
    node.args(["--input-type=module", "-"]).current_dir(clients());
    let prelude = std::fs::read_to_string(repository().join("tests/clients/prelude.mjs")).unwrap();
    run(world, node, &format!("{prelude}\n{script}"));
}

#[track_caller]
fn shell(service: &Service, world: &World, script: &str) {
    let mut bash = client(service, world, "bash");
    bash.arg("-s").env("AWS_PAGER", "").current_dir(world.path(""));
    let prelude = std::fs::read_to_string(repository().join("tests/clients/prelude.sh")).unwrap();
    run(world, bash, &format!("{prelude}\n{script}"));
}

#[test]
fn the_aws_cli() {
    only_on_files!();
    let world = World::new();
    let service = Service::start(&world, &[]);
    shell(
        &service,
        &world,
        r#"
made=$(lambda create-function --function-name hello --package-type Image --code ImageUri="$IMAGE" --role "$ROLE" \
    --timeout 20 --memory-size 256 --environment 'Variables={GREETING=hello}' --tags team=a --query State)
is Pending "$made"
lambda wait function-active-v2 --function-name hello
is $'hello\ta\tSuccessful' "$(lambda get-function --function-name hello \
    --query '[Configuration.FunctionName, Tags.team, Configuration.LastUpdateStatus]')"

answer=$(lambda invoke --function-name hello --payload '{"a": [1, "ü"]}' --log-type Tail --query LogResult out.json)
is '[1,"ü"]' "$(jq -c .event.a out.json)"
contains "got {" "$(base64 -d <<<"$answer")"
is $'200\tUnhandled' "$(lambda invoke --function-name hello --payload '{"do": "fail"}' --query '[StatusCode, FunctionError]' out.json)"
is AsAsked "$(jq -r .errorType out.json)"
is 202 "$(lambda invoke --function-name hello --invocation-type Event --payload '{}' --query StatusCode out.json)"
is 204 "$(lambda invoke --function-name hello --invocation-type DryRun --query StatusCode out.json)"

is InProgress "$(lambda update-function-code --function-name hello --image-uri "$IMAGE" --query LastUpdateStatus)"
lambda wait function-updated-v2 --function-name hello
lambda update-function-configuration --function-name hello --environment 'Variables={GREETING=bye}' >/dev/null
lambda wait function-updated --function-name hello
lambda invoke --function-name hello --payload '{"do": "environment"}' out.json >/dev/null
is bye "$(jq -r .GREETING out.json)"

is 1 "$(lambda publish-version --function-name hello --query Version)"
lambda wait published-version-active --function-name hello --qualifier 1
lambda create-alias --function-name hello --name live --function-version 1 >/dev/null
is 1 "$(lambda invoke --function-name hello --qualifier live --query ExecutedVersion out.json)"
is $'$LATEST\n1' "$(lambda list-versions-by-function --function-name hello --page-size 1 --query 'Versions[].Version')"
is 5 "$(lambda put-function-concurrency --function-name hello --reserved-concurrent-executions 5 --query ReservedConcurrentExecutions)"

refused ResourceNotFoundException get-function --function-name nobody
refused ResourceConflictException create-function --function-name hello --package-type Image --code ImageUri="$IMAGE" --role "$ROLE"
refused InvalidParameterValueException update-function-configuration --function-name hello --memory-size 1000000
lambda delete-function --function-name hello
refused ResourceNotFoundException invoke --function-name hello out.json
"#,
    );
    service.stop();
    world.assert_nothing_left();
}

#[test]
fn the_javascript_sdk() {
    only_on_files!();
    let world = World::new();
    let service = Service::start(&world, &[]);
    javascript(&service, &world, JAVASCRIPT);
    service.stop();
    world.assert_nothing_left();
}

/// All that a function goes through.
const JAVASCRIPT: &str = r#"
const made = await create("hello", { Environment: { Variables: { GREETING: "hello" } }, Tags: { team: "a" } });
assert.equal(made.State, "Pending");
const found = await client.send(new L.GetFunctionCommand(hello));
assert.equal(found.Configuration.State, "Active");
assert.deepEqual(found.Tags, { team: "a" });

const answer = await invoke({ a: [1, "ü"] }, { LogType: "Tail" });
assert.deepEqual(answer.payload.event, { a: [1, "ü"] });
assert.equal(answer.payload.id, answer.$metadata.requestId);
assert.match(Buffer.from(answer.LogResult, "base64").toString(), /got \{/);
const failed = await invoke({ do: "fail" });
assert.deepEqual([failed.StatusCode, failed.FunctionError, failed.payload.errorType], [200, "Unhandled", "AsAsked"]);
assert.equal((await invoke({}, { InvocationType: "Event" })).StatusCode, 202);
assert.equal((await invoke({}, { InvocationType: "DryRun" })).StatusCode, 204);

// As it comes, and longer than an answer in one piece may be.
async function stream(event, more) {
  const { EventStream } = await client.send(
    new L.InvokeWithResponseStreamCommand({ ...hello, Payload: JSON.stringify({ do: "stream", ...event }), ...more }));
  const chunks = [];
  let end, first, last;
  for await (const part of EventStream) {
    if (part.PayloadChunk) {
      chunks.push(part.PayloadChunk.Payload);
      last = Date.now();
      first ??= last;
    }
    end = part.InvokeComplete ?? end;
  }
  const all = Buffer.concat(chunks);
  return { body: all.subarray(all.indexOf("\0".repeat(8)) + 8).toString(), took: last - first, end };
}
const slow = await stream({ parts: 4, bytes: 1, pause: 500 }, { LogType: "Tail" });
assert.equal(slow.body, "0:x\n1:x\n2:x\n3:x\n");
assert.ok(slow.took > 500, `${slow.took} ms`);
assert.equal(slow.end.ErrorCode, undefined);
assert.ok(slow.end.LogResult);
assert.equal((await stream({ parts: 10, bytes: 1_000_000 })).body.length, 10 * 1_000_003);
const broken = await stream({ do: "fail" });
assert.equal(broken.end.ErrorCode, "AsAsked");
assert.match(broken.end.ErrorDetails, /as asked/);

const { LastUpdateStatus } = await client.send(new L.UpdateFunctionCodeCommand({ ...hello, ImageUri: process.env.IMAGE }));
assert.equal(LastUpdateStatus, "InProgress");
await L.waitUntilFunctionUpdatedV2(waiter, hello);
await client.send(new L.UpdateFunctionConfigurationCommand({ ...hello, Environment: { Variables: { GREETING: "bye" } } }));
await L.waitUntilFunctionUpdatedV2(waiter, hello);
assert.equal((await invoke({ do: "environment" })).payload.GREETING, "bye");

for (const number of [1, 2]) {
  const Description = `number ${number}`;
  const version = await client.send(new L.PublishVersionCommand({ ...hello, Description }));
  assert.equal(version.Version, `${number}`);
  await client.send(new L.UpdateFunctionConfigurationCommand({ ...hello, Description: `after ${number}` }));
}
await L.waitUntilPublishedVersionActive(waiter, { ...hello, Qualifier: "2" });
const versions = [];
for await (const page of L.paginateListVersionsByFunction({ client, pageSize: 1 }, hello)) {
  versions.push(page.Versions.map((version) => version.Version));
}
assert.deepEqual(versions.flat(), ["$LATEST", "1", "2"]);
assert.ok(versions.length >= 3);
await client.send(new L.CreateAliasCommand({ ...hello, Name: "live", FunctionVersion: "1" }));
assert.equal((await invoke({}, { Qualifier: "live" })).ExecutedVersion, "1");
const RoutingConfig = { AdditionalVersionWeights: { 2: 1 } };
await client.send(new L.UpdateAliasCommand({ ...hello, Name: "live", RoutingConfig }));
assert.equal((await invoke({}, { Qualifier: "live" })).ExecutedVersion, "2");

// Errors are of the SDK's classes.
await client.send(new L.PutFunctionConcurrencyCommand({ ...hello, ReservedConcurrentExecutions: 0 }));
const throttled = await refused(L.TooManyRequestsException, invoke({}));
assert.equal(throttled.Reason, "ReservedFunctionConcurrentInvocationLimitExceeded");
assert.ok(throttled.retryAfterSeconds);
await client.send(new L.DeleteFunctionConcurrencyCommand(hello));
await refused(L.ResourceNotFoundException, client.send(new L.GetFunctionCommand({ FunctionName: "nobody" })));
await refused(L.ResourceConflictException, create("hello"));
await refused(L.InvalidParameterValueException, create("other", { MemorySize: 1 }));
await refused(L.PreconditionFailedException,
  client.send(new L.UpdateFunctionConfigurationCommand({ ...hello, RevisionId: "x", Timeout: 9 })));
await refused(L.InvalidRequestContentException, client.send(new L.InvokeCommand({ ...hello, Payload: "{" })));
await refused(L.RequestTooLargeException, invoke("x".repeat(6 << 20)));
const unknown = await refused(L.LambdaServiceException, client.send(new L.GetLayerVersionCommand({ LayerName: "any", VersionNumber: 1 })));
assert.equal(unknown.name, "NotImplementedException");

await client.send(new L.DeleteFunctionCommand(hello));
await refused(L.ResourceNotFoundException, invoke({}));
const left = [];
for await (const page of L.paginateListFunctions({ client }, {})) left.push(...page.Functions);
assert.deepEqual(left, []);
"#;

#[test]
fn clients_with_keys_of_their_own() {
    only_on_files!();
    let world = World::new();
    let service = with_keys(&world);
    javascript(
        &service,
        &world,
        r#"
client = connect("AKIDONE", "secret-of-one");
await create("hello");
const { Configuration } = await client.send(new L.GetFunctionCommand(hello));
// An ARN is encoded in the path, and signed so.
await client.send(new L.GetFunctionCommand({ FunctionName: Configuration.FunctionArn }));
await client.send(new L.ListTagsCommand({ Resource: Configuration.FunctionArn }));
await invoke({ text: "x".repeat(1 << 20) });
client = connect("ASIDONE", "secret-for-a-while", "token-of-one");
assert.equal((await invoke({ a: 1 })).payload.event.a, 1);
client = connect("ASIDONE", "secret-for-a-while");
assert.equal((await refused(L.LambdaServiceException, invoke({}))).name, "UnrecognizedClientException");
client = connect("AKIDONE", "wrong");
assert.equal((await refused(L.LambdaServiceException, invoke({}))).name, "InvalidSignatureException");
client = connect("AKIDTWO", "secret-of-two");
await refused(L.ResourceNotFoundException, invoke({}));
"#,
    );
    shell(
        &service,
        &world,
        r#"
export AWS_ACCESS_KEY_ID=AKIDONE AWS_SECRET_ACCESS_KEY=secret-of-one
is hello "$(lambda list-functions --query 'Functions[].FunctionName')"
is 200 "$(lambda invoke --function-name hello --payload '{}' --query StatusCode out.json)"
AWS_SECRET_ACCESS_KEY=wrong refused InvalidSignatureException list-functions
export AWS_ACCESS_KEY_ID=ASIDONE AWS_SECRET_ACCESS_KEY=secret-for-a-while
AWS_SESSION_TOKEN=token-of-one lambda get-account-settings >/dev/null
AWS_SESSION_TOKEN=another refused UnrecognizedClientException get-account-settings
"#,
    );
    service.script_for(
        "lambda-rust",
        &world,
        r#"
import urllib.request, urllib.error
# An address that is signed itself, for whoever has it and for a while.
def fetch(address):
    try:
        return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(address).status
    except urllib.error.HTTPError as error:
        return error.headers["x-amzn-ErrorType"]
one = connect("AKIDONE", "secret-of-one")
address = one.generate_presigned_url("get_function", Params={"FunctionName": "hello"}, ExpiresIn=60)
assert fetch(address) == 200
assert fetch(address.replace("hello", "other")) == "InvalidSignatureException"
wrong = connect("AKIDONE", "wrong").generate_presigned_url("get_function", Params={"FunctionName": "hello"})
assert fetch(wrong) == "InvalidSignatureException"
one.delete_function(FunctionName="hello")
"#,
    );
    service.stop();
    world.assert_nothing_left();
}

#[test]
fn sam_and_cargo_lambda_invoke() {
    only_on_files!();
    let world = World::new();
    let service = with_keys(&world);
    shell(
        &service,
        &world,
        r#"
export AWS_ACCESS_KEY_ID=AKIDONE AWS_SECRET_ACCESS_KEY=secret-of-one SAM_CLI_TELEMETRY=0
arn=$(lambda create-function --function-name hello --package-type Image --code ImageUri="$IMAGE" --role "$ROLE" \
    --timeout 20 --query FunctionArn)
lambda wait function-active-v2 --function-name hello

# With the end of the log, as text, and all of the answer, as JSON.
sam remote invoke "$arn" --event '{"from": "sam"}' --region us-east-1 >out 2>log
is sam "$(jq -r .event.from out)"
contains "START RequestId" "$(cat log)"
is 202 "$(sam remote invoke "$arn" --event '{}' --region us-east-1 --output json --parameter InvocationType=Event \
    --parameter LogType=None 2>/dev/null | jq .StatusCode)"
if AWS_SECRET_ACCESS_KEY=wrong sam remote invoke "$arn" --region us-east-1 2>log; then fail "sam was let in"; fi
contains InvalidSignatureException "$(cat log)"

cargo() { cargo-lambda lambda invoke --remote --endpoint-url "$ENDPOINT" --region us-east-1 "$@"; }
cargo --data-ascii '{"from": "cargo"}' --client-context-ascii '{"custom": {"k": "v"}}' --output-format json hello >out
is $'cargo\tv' "$(jq -r '[.event.from, .client.k] | @tsv' out)"
lambda publish-version --function-name hello >/dev/null
lambda create-alias --function-name hello --name live --function-version 1 >/dev/null
is 1 "$(cargo --data-ascii '{}' --alias live hello | jq -r .version)"
if cargo --data-ascii '{"do": "fail"}' hello >out 2>log; then fail "a failure is none"; fi
contains AsAsked "$(cat out log)"
if AWS_SECRET_ACCESS_KEY=wrong cargo --data-ascii '{}' hello >out 2>log; then fail "cargo-lambda was let in"; fi
lambda delete-function --function-name hello
"#,
    );
    service.stop();
    world.assert_nothing_left();
}
