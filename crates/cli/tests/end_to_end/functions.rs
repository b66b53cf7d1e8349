//! Functions by the Lambda API: AWS's own client for Python against real containers with AWS's own runtime client in them.

mod browser;
mod clients;
mod commands;
mod extensions;
mod faults;
mod harness;
mod network;
mod packages;
mod page;
mod provisioned;
mod publishing;
mod runtimes;
mod terraform;
mod terraform_access;
mod urls;
mod watching;

use self::harness::Service;
use crate::world::World;

#[test]
fn a_function_is_made_invoked_changed_and_deleted() {
    let world = World::new();
    let service = Service::start(&world, &[]);
    service.script(
        &world,
        r#"
made = create(Environment={"Variables": {"GREETING": "hello"}}, Description="first", Tags={"team": "a"})
assert made["State"] == "Pending" and made["Version"] == "$LATEST" and made["PackageType"] == "Image", made
arn = "arn:aws:lambda:us-east-1:000000000000:function:hello"
assert made["FunctionArn"] == arn

got = client.get_function(FunctionName="hello")
assert got["Configuration"]["State"] == "Active" and got["Configuration"]["LastUpdateStatus"] == "Successful", got
assert got["Code"]["ImageUri"] == IMAGE and got["Tags"] == {"team": "a"}, got
assert [f["FunctionName"] for f in client.list_functions()["Functions"]] == ["hello"]

answer = invoke({"a": [1, "ü"]}, LogType="Tail")
assert answer["StatusCode"] == 200 and answer["ExecutedVersion"] == "$LATEST" and "FunctionError" not in answer, answer
payload = answer["Payload"]
assert payload["event"] == {"a": [1, "ü"]} and payload["invocations"] == 1 and payload["arn"] == arn, payload
assert payload["id"] == answer["ResponseMetadata"]["RequestId"] and 15000 < payload["remaining"] <= 20000, payload
log = base64.b64decode(answer["LogResult"]).decode()
assert log.startswith(f"START RequestId: {payload['id']} Version: $LATEST\n") and 'got {"a"' in log, log
for part in ["END RequestId", "REPORT RequestId", "Duration:", "Billed Duration:", "Memory Size: 256 MB", "Init Duration:"]:
    assert part in log, (part, log)
used = int(log.split("Max Memory Used: ")[1].split()[0])
assert 5 < used < 256, log

# The same sandbox, and by every name that it has.
for name in ["hello", arn, "000000000000:function:hello", "hello:$LATEST", arn + ":$LATEST"]:
    again = invoke({}, name=name)["Payload"]
assert again["invocations"] == 6 and again["arn"] == arn + ":$LATEST", again
context = base64.b64encode(json.dumps({"custom": {"k": "v"}}).encode()).decode()
assert invoke({}, ClientContext=context)["Payload"]["client"] == {"k": "v"}
assert client.invoke(FunctionName="hello", InvocationType="DryRun")["StatusCode"] == 204

environment = invoke({"do": "environment"})["Payload"]
for name, value in {"GREETING": "hello", "AWS_REGION": "us-east-1", "AWS_LAMBDA_FUNCTION_NAME": "hello",
                    "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST", "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "256",
                    "AWS_LAMBDA_LOG_GROUP_NAME": "/aws/lambda/hello", "LAMBDA_TASK_ROOT": "/var/task",
                    "TZ": ":UTC", "AWS_LAMBDA_RUNTIME_API": "127.0.0.1:9001"}.items():
    assert environment[name] == value, (name, environment)

# New settings are those of the next invocation.
revision = client.get_function_configuration(FunctionName="hello")["RevisionId"]
refused("PreconditionFailedException", lambda: client.update_function_configuration(FunctionName="hello", RevisionId="x", Timeout=9))
client.update_function_configuration(FunctionName="hello", RevisionId=revision, Environment={"Variables": {"GREETING": "bye"}})
environment = invoke({"do": "environment"})["Payload"]
assert environment["GREETING"] == "bye", environment

client.update_function_code(FunctionName="hello", ImageUri=IMAGE)
assert client.get_function_configuration(FunctionName="hello")["LastUpdateStatus"] == "InProgress"
invoke()
refused("ResourceConflictException", lambda: client.update_function_code(FunctionName="hello", ImageUri=IMAGE), "in progress")
client.get_waiter("function_updated_v2").wait(FunctionName="hello", WaiterConfig={"Delay": 1})
assert invoke()["Payload"]["invocations"] == 1

client.delete_function(FunctionName="hello")
refused("ResourceNotFoundException", lambda: client.get_function(FunctionName="hello"), "hello")
refused("ResourceNotFoundException", lambda: invoke())
"#,
    );
    service.stop();
    world.assert_nothing_left();
    world.assert_no_images();
}

#[test]
fn failures_of_functions_are_answers_in_lambdas_words() {
    let world = World::new();
    let service = Service::start(&world, &[]);
    service.script(
        &world,
        r#"
create(Timeout=8)
failed = fails({"do": "fail"}, "ValueError", "as asked")
assert "app.py" in "".join(failed["Payload"]["stackTrace"]), failed
# A handler's error costs no sandbox; the end of the runtime does.
assert invoke()["Payload"]["invocations"] == 2
fails({"do": "exit"}, "Runtime.ExitError", "exit status 3")
assert invoke()["Payload"]["invocations"] == 1
began = time.time()
fails({"do": "sleep", "seconds": 30}, "Sandbox.Timedout", "timed out after 8.00 seconds")
assert 8 <= time.time() - began < 12
assert invoke()["Payload"]["invocations"] == 1
fails({"do": "memory", "mb": 400}, "Runtime.OutOfMemory", "signal: killed")
fails({"do": "large", "bytes": 7_000_000}, "Function.ResponseSizeTooLarge")
assert len(invoke({"do": "large", "bytes": 6_000_000})["Payload"]) == 6_000_000

# The root is read-only, /tmp takes what was set and no more.
assert invoke({"do": "write", "path": "/var/task/x", "bytes": 1})["Payload"] == {"error": "Read-only file system"}
assert invoke({"do": "write", "path": "/tmp/x", "bytes": 100_000_000})["Payload"] == {"written": 100_000_000}
# Nothing else is on its network, not even the service.
host, port = ENDPOINT.removeprefix("http://").split(":")
assert "error" in invoke({"do": "connect", "host": host, "port": int(port)})["Payload"]

for how, kind in [("exception", "RuntimeError"), ("exit", "Runtime.ExitError")]:
    client.update_function_configuration(FunctionName="hello", Environment={"Variables": {"FAIL_INIT": how}})
    fails({}, kind)
client.update_function_configuration(FunctionName="hello", Environment={})
assert invoke()["Payload"]["invocations"] == 1
"#,
    );
    service.stop();
    world.assert_nothing_left();
}

#[test]
fn versions_aliases_concurrency_and_tags() {
    let world = World::new();
    let service = Service::start(&world, &[]);
    service.script(
        &world,
        r#"
create(Environment={"Variables": {"NUMBER": "1"}})
one = client.publish_version(FunctionName="hello", Description="one")
assert one["Version"] == "1" and one["FunctionArn"].endswith(":hello:1") and one["LastUpdateStatus"] == "Successful", one
assert client.publish_version(FunctionName="hello", Description="one")["Version"] == "1"
client.update_function_configuration(FunctionName="hello", Environment={"Variables": {"NUMBER": "2"}})
assert client.publish_version(FunctionName="hello")["Version"] == "2"
assert [v["Version"] for v in client.list_versions_by_function(FunctionName="hello")["Versions"]] == ["$LATEST", "1", "2"]

alias = client.create_alias(FunctionName="hello", Name="live", FunctionVersion="1")
assert alias["AliasArn"].endswith(":hello:live")
refused("ResourceConflictException", lambda: client.create_alias(FunctionName="hello", Name="live", FunctionVersion="1"))
refused("ResourceNotFoundException", lambda: client.create_alias(FunctionName="hello", Name="next", FunctionVersion="9"))
def version(qualifier):
    answer = invoke({"do": "environment"}, Qualifier=qualifier)
    return answer["Payload"]["NUMBER"], answer["ExecutedVersion"], answer["Payload"]["AWS_LAMBDA_FUNCTION_VERSION"]
assert version("live") == ("1", "1", "1") and version("2") == ("2", "2", "2") and version("$LATEST") == ("2", "$LATEST", "$LATEST")
client.update_alias(FunctionName="hello", Name="live", RoutingConfig={"AdditionalVersionWeights": {"2": 0.5}})
seen = {version("live") for _ in range(40)}
assert seen == {("1", "1", "1"), ("2", "2", "2")}, seen
refused("ResourceConflictException", lambda: client.delete_function(FunctionName="hello", Qualifier="2"))
client.update_alias(FunctionName="hello", Name="live", FunctionVersion="2", RoutingConfig={})
assert client.get_alias(FunctionName="hello", Name="live")["FunctionVersion"] == "2"
client.delete_function(FunctionName="hello", Qualifier="1")
refused("ResourceNotFoundException", lambda: invoke({}, Qualifier="1"))
client.delete_alias(FunctionName="hello", Name="live")
refused("ResourceNotFoundException", lambda: invoke({}, Qualifier="live"))

client.put_function_concurrency(FunctionName="hello", ReservedConcurrentExecutions=1)
assert client.get_function(FunctionName="hello")["Concurrency"] == {"ReservedConcurrentExecutions": 1}
running = threading.Thread(target=lambda: invoke({"do": "sleep", "seconds": 3}))
running.start()
time.sleep(1.5)
full = refused("TooManyRequestsException", lambda: invoke(), "Rate Exceeded")
assert full["Reason"] == "ReservedFunctionConcurrentInvocationLimitExceeded", full
assert full["ResponseMetadata"]["HTTPHeaders"]["retry-after"] == "1", full
running.join()
client.delete_function_concurrency(FunctionName="hello")

# The answer as a stream: what is not streamed by the function comes as one part.
def streamed(payload):
    events = list(client.invoke_with_response_stream(FunctionName="hello", Payload=json.dumps(payload), LogType="Tail")["EventStream"])
    chunks = b"".join(event["PayloadChunk"]["Payload"] for event in events if "PayloadChunk" in event)
    assert list(events[-1]) == ["InvokeComplete"], events
    return chunks, events[-1]["InvokeComplete"]
chunks, end = streamed({"do": "large", "bytes": 3_000_000})
assert chunks == b'"' + b"x" * 3_000_000 + b'"' and "ErrorCode" not in end and end["LogResult"], end
chunks, end = streamed({"do": "fail"})
assert chunks == b"" and end["ErrorCode"] == "ValueError" and "as asked" in end["ErrorDetails"], end

# Each runs one invocation at a time; as many as come at once run at once.
answers = []
threads = [threading.Thread(target=lambda: answers.append(invoke({"do": "sleep", "seconds": 1})["Payload"])) for _ in range(6)]
began = time.time()
[t.start() for t in threads]; [t.join() for t in threads]
assert len(answers) == 6 and all(a["event"]["do"] == "sleep" for a in answers), answers
assert time.time() - began < 5, time.time() - began

arn = client.get_function_configuration(FunctionName="hello")["FunctionArn"]
client.tag_resource(Resource=arn, Tags={"a": "1", "b": "2"})
client.untag_resource(Resource=arn, TagKeys=["a"])
assert client.list_tags(Resource=arn)["Tags"] == {"b": "2"}
assert client.get_account_settings()["AccountUsage"]["FunctionCount"] == 1
"#,
    );
    service.stop();
    world.assert_nothing_left();
}

#[test]
fn bad_requests_are_refused_in_awss_shape_and_change_nothing() {
    let world = World::new();
    let service = Service::start(&world, &[]);
    service.script(
        &world,
        r#"
def bad(*words, **settings):
    all = dict(FunctionName="bad", Role=ROLE, PackageType="Image", Code={"ImageUri": IMAGE}) | settings
    refused("InvalidParameterValueException", lambda: client.create_function(**all), *words)
loose = connect(parameter_validation=False)
strict, client = client, loose
bad("Timeout", "1 to 900", Timeout=901)
bad("MemorySize", "128 to 10240", MemorySize=64)
bad("Size", EphemeralStorage={"Size": 10})
bad("reserved keys", "AWS_REGION", Environment={"Variables": {"AWS_REGION": "x"}})
bad("4096", Environment={"Variables": {"A1": "x" * 5000}})
bad("--runtime python3.12=IMAGE", PackageType="Zip", Code={"ZipFile": b"x"}, Runtime="python3.12", Handler="a.b")
bad("LoggingConfig", LoggingConfig={"LogFormat": "JSON"})
bad("LoggingConfig", LoggingConfig={"LogGroup": "/aws/lambda/other"})
bad("VpcConfig", "not supported", VpcConfig={"SubnetIds": ["subnet-1"], "SecurityGroupIds": ["sg-1"]})
bad("Architectures", Architectures=["arm64" if os.uname().machine == "x86_64" else "x86_64"])
bad("names no function", FunctionName="a b")
assert client.list_functions()["Functions"] == []

client.create_function(FunctionName="broken", Role=ROLE, PackageType="Image", Code={"ImageUri": "oci:/nowhere:tag"})
refused("ResourceConflictException", lambda: client.create_function(FunctionName="broken", Role=ROLE, PackageType="Image", Code={"ImageUri": IMAGE}), "already exist")
for _ in range(200):
    found = client.get_function_configuration(FunctionName="broken")
    if found["State"] != "Pending":
        break
    time.sleep(0.1)
assert found["State"] == "Failed" and found["StateReasonCode"] == "InvalidImage" and "/nowhere" in found["StateReason"], found
refused("InvalidRuntimeException", lambda: invoke({}, name="broken"), "/nowhere")

refused("ResourceNotFoundException", lambda: client.get_function(FunctionName="nobody"), "nobody")
refused("InvalidRequestContentException", lambda: client.invoke(FunctionName="broken", Payload=b"{"))
refused("RequestTooLargeException", lambda: client.invoke(FunctionName="broken", Payload=b'"' + b"x" * (6 << 20) + b'"'))
refused("NotImplementedException", lambda: client.get_layer_version(LayerName="x", VersionNumber=1), "GetLayerVersion")
import urllib.request, urllib.error
def status(path, **headers):
    try:
        return urllib.request.urlopen(urllib.request.Request(ENDPOINT + path, headers=headers)).status, None
    except urllib.error.HTTPError as error:
        return error.code, error.headers["x-amzn-ErrorType"]
signed = {"Authorization": "AWS4-HMAC-SHA256 Credential=x"}
assert status("/2015-03-31/nothing", **signed) == (404, "UnknownOperationException")
# What a web page may send is not answered.
assert status("/2015-03-31/functions", **signed) == (200, None)
assert status("/2015-03-31/functions") == (403, "MissingAuthenticationTokenException")
assert status("/2015-03-31/functions", Origin="http://example.com", **signed) == (403, "MissingAuthenticationTokenException")
assert status("/2015-03-31/functions", Host="example.com", **signed) == (403, "AccessDeniedException")
"#,
    );
    service.stop();
    world.assert_nothing_left();
}

#[test]
fn callers_are_known_by_their_signatures_and_see_their_own_functions() {
    let world = World::new();
    let keys = world.path("access-keys");
    std::fs::write(&keys, "# key secret tenant\nAKIDONE secret-of-one default\nAKIDTWO secret-of-two other\n").unwrap();
    let service = Service::start(&world, &["--access-keys", keys.to_str().unwrap()]);
    service.script(
        &world,
        r#"
client = connect("AKIDONE", "secret-of-one")
create(name="mine")
arn = client.get_function_configuration(FunctionName="mine")["FunctionArn"]
# An ARN in the path is encoded, and signed as it is sent.
assert client.get_function(FunctionName=arn)["Configuration"]["FunctionName"] == "mine"
other = connect("AKIDTWO", "secret-of-two")
assert other.list_functions()["Functions"] == []
refused("ResourceNotFoundException", lambda: other.invoke(FunctionName="mine"))
refused("InvalidSignatureException", lambda: connect("AKIDONE", "wrong").list_functions())
refused("UnrecognizedClientException", lambda: connect("AKIDNONE", "secret-of-one").list_functions())
unsigned = boto3.client("lambda", endpoint_url=ENDPOINT, region_name="us-east-1", config=Config(signature_version=botocore.UNSIGNED))
refused("MissingAuthenticationTokenException", lambda: unsigned.list_functions())
"#,
    );
    service.stop();
    world.assert_nothing_left();
    let open = world.snowmelt(["serve", "--listen", "0.0.0.0:0"]);
    open.failure(1, &["--access-keys", "127.0.0.1"]);
    std::fs::write(&keys, "KEY SECRET ../tenant\n").unwrap();
    world.snowmelt(["serve", "--access-keys", keys.to_str().unwrap()]).failure(1, &["line 1", "../tenant"]);
    let _service = Service::start(&world, &[]);
    world.snowmelt(["serve", "--listen", "127.0.0.1:0"]).failure(1, &["another service uses", "--state-dir"]);
}

#[test]
fn sandboxes_outlive_a_service_that_is_killed() {
    let world = World::new();
    let service = Service::start(&world, &[]);
    service.script(&world, "create()\nassert invoke()['Payload']['invocations'] == 1");
    let address = service.address().to_owned();
    service.kill();
    let service = Service::start_at(&world, &address, &[]);
    service.script(
        &world,
        r#"
# It has its memory still.
for _ in range(100):
    if invoke()["Payload"]["invocations"] > 1:
        break
    time.sleep(0.1)
else:
    raise AssertionError("the sandbox was lost")
"#,
    );
    service.stop();
    world.assert_nothing_left();
}

#[test]
fn events_are_run_at_least_once_whatever_is_killed() {
    let world = World::new();
    let folder = world.path("records");
    std::fs::create_dir_all(folder.join("default")).unwrap();
    let options = ["--retry-after", "1s", "--destinations", folder.to_str().unwrap()];
    let service = Service::start(&world, &options);
    let prepare = format!("FOLDER = {:?}\n", folder.join("default").to_str().unwrap());
    let script = |service: &Service, text: &str| service.script(&world, &format!("{prepare}{READ_RECORDS}{text}"));
    script(
        &service,
        r#"
create()
create(name="next")
arn = client.get_function_configuration(FunctionName="next")["FunctionArn"]
set = lambda **more: client.put_function_event_invoke_config(FunctionName="hello", **more)
refused("InvalidParameterValueException", lambda: set(DestinationConfig={"OnFailure": {"Destination": "file:///etc/passwd"}}), "--destinations")
refused("InvalidParameterValueException", lambda: set(DestinationConfig={"OnFailure": {"Destination": arn + "x"}}))
refused("InvalidParameterValueException", lambda: set(DestinationConfig={"OnFailure": {"Destination": "http://127.0.0.1/"}}), "--allow-http-destinations")
refused("ResourceNotFoundException", lambda: client.get_function_event_invoke_config(FunctionName="hello"))
to = lambda name: {"Destination": f"file://{FOLDER}/{name}"}
made = set(MaximumRetryAttempts=1, DestinationConfig={"OnFailure": to("failed"), "OnSuccess": to("done")})
assert made["MaximumRetryAttempts"] == 1 and made["MaximumEventAgeInSeconds"] == 21600, made
assert client.get_function_event_invoke_config(FunctionName="hello")["DestinationConfig"]["OnFailure"] == to("failed")
assert len(client.list_function_event_invoke_configs(FunctionName="hello")["FunctionEventInvokeConfigs"]) == 1

sent = client.invoke(FunctionName="hello", InvocationType="Event", Payload=b'{"n": 1}')
assert sent["StatusCode"] == 202 and sent["Payload"].read() == b"", sent
record = records("done", 1)[0]
assert record["requestContext"]["requestId"] == sent["ResponseMetadata"]["RequestId"], record
assert record["requestContext"]["condition"] == "Success" and record["requestPayload"] == {"n": 1}, record
assert record["responsePayload"]["id"] == record["requestContext"]["requestId"], record

client.invoke(FunctionName="hello", InvocationType="Event", Payload=b'{"do": "fail"}')
record = records("failed", 1)[0]
assert record["requestContext"]["condition"] == "RetriesExhausted" and record["requestContext"]["approximateInvokeCount"] == 2, record
assert record["responseContext"]["functionError"] == "Unhandled" and record["responsePayload"]["errorType"] == "ValueError", record

# Another function is told, whose own end is told.
client.put_function_event_invoke_config(FunctionName="next", DestinationConfig={"OnSuccess": to("next")})
client.update_function_event_invoke_config(FunctionName="hello", DestinationConfig={"OnSuccess": {"Destination": arn}})
client.invoke(FunctionName="hello", InvocationType="Event", Payload=b'{"n": 2}')
record = records("next", 1)[0]
assert record["requestPayload"]["requestPayload"] == {"n": 2}, record
refused("RequestTooLargeException", lambda: client.invoke(FunctionName="hello", InvocationType="Event", Payload=b'"' + b"x" * (1 << 20) + b'"'))
refused("ResourceNotFoundException", lambda: client.invoke(FunctionName="nobody", InvocationType="Event"))

# Accepted, and then the service is killed, with some of them running.
client.update_function_event_invoke_config(FunctionName="hello", DestinationConfig={"OnSuccess": to("after")})
for n in range(30):
    client.invoke(FunctionName="hello", InvocationType="Event", Payload=json.dumps({"do": "sleep", "seconds": 0.2, "n": n}))
"#,
    );
    let address = service.address().to_owned();
    service.kill();
    let service = Service::start_at(&world, &address, &options);
    script(
        &service,
        r#"
found = records("after", 30)
assert {record["requestPayload"]["n"] for record in found} == set(range(30)), found
client.delete_function_event_invoke_config(FunctionName="hello")
"#,
    );
    service.stop();
    world.assert_nothing_left();
}

/// Waits for records of so many different events in a file.
const READ_RECORDS: &str = r#"
def records(name, count):
    for _ in range(600):
        try:
            found = [json.loads(line) for line in open(f"{FOLDER}/{name}") if line.endswith("\n")]
        except FileNotFoundError:
            found = []
        if len({record["requestContext"]["requestId"] for record in found}) >= count:
            return found
        time.sleep(0.1)
    raise AssertionError((name, found))
"#;
