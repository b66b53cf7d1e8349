//! Settings that say what becomes of events, and versions that are published with their code.

use super::harness::Service;
use crate::world::World;

#[test]
fn versions_are_published_with_their_code() {
    let world = World::new();
    let service = Service::start(&world, &[]);
    service.script(
        &world,
        r#"
made = create(Publish=True)
assert made["Version"] == "1" and made["FunctionArn"].endswith(":hello:1") and made["State"] == "Pending", made
client.get_waiter("published_version_active").wait(FunctionName="hello", Qualifier="1", WaiterConfig={"Delay": 1})
assert invoke({}, Qualifier="1")["ExecutedVersion"] == "1"
# Nothing has changed since.
assert client.publish_version(FunctionName="hello")["Version"] == "1"

before = client.get_function_configuration(FunctionName="hello")
dry = client.update_function_code(FunctionName="hello", ImageUri=IMAGE, DryRun=True, Publish=True)
assert dry["RevisionId"] == before["RevisionId"] and dry["LastUpdateStatus"] == "Successful", dry
updated = client.update_function_code(FunctionName="hello", ImageUri=IMAGE, Publish=True)
assert updated["Version"] == "2" and updated["State"] == "Pending", updated
refused("ResourceConflictException", lambda: invoke({}, Qualifier="2"), "Pending")
client.get_waiter("published_version_active").wait(FunctionName="hello", Qualifier="2", WaiterConfig={"Delay": 1})
client.get_waiter("function_updated_v2").wait(FunctionName="hello", WaiterConfig={"Delay": 1})
assert invoke({}, Qualifier="2")["ExecutedVersion"] == "2" and invoke({}, Qualifier="1")["ExecutedVersion"] == "1"

# One whose code does not come is there, and says why.
client.update_function_code(FunctionName="hello", ImageUri="oci:/nowhere:tag", Publish=True)
for _ in range(200):
    found = client.get_function_configuration(FunctionName="hello", Qualifier="3")
    if found["State"] != "Pending":
        break
    time.sleep(0.1)
assert found["State"] == "Failed" and "/nowhere" in found["StateReason"], found
assert invoke()["Payload"]["invocations"] == 1
client.delete_function(FunctionName="hello")
"#,
    );
    service.stop();
    world.assert_nothing_left();
    world.assert_no_images();
}

#[test]
fn what_cannot_be_run_goes_to_the_dead_letter_target() {
    let world = World::new();
    let folder = world.path("letters");
    std::fs::create_dir_all(folder.join("default")).unwrap();
    let options = ["--retry-after", "1s", "--destinations", folder.to_str().unwrap(), "--allow-http-destinations"];
    let service = Service::start(&world, &options);
    let prepare = format!("FOLDER = {:?}\n", folder.join("default").to_str().unwrap());
    let text = r#"
import http.server
target = f"file://{FOLDER}/letters"
letter = lambda to: {"TargetArn": to}
for bad, word in [("file:///etc/passwd", "--destinations"), ("arn:aws:sqs:us-east-1:000000000000:queue", "expected the ARN")]:
    refused("InvalidParameterValueException", lambda: create(DeadLetterConfig=letter(bad)), "DeadLetterConfig", word)
create(DeadLetterConfig=letter(target))
create(name="reader")
arn = client.get_function_configuration(FunctionName="reader")["FunctionArn"]
assert client.get_function_configuration(FunctionName="hello")["DeadLetterConfig"] == letter(target)
client.put_function_event_invoke_config(FunctionName="hello", MaximumRetryAttempts=0,
    DestinationConfig={"OnFailure": {"Destination": f"file://{FOLDER}/failed"}})

def wait(name, holds):
    for _ in range(300):
        try:
            found = [json.loads(line) for line in open(f"{FOLDER}/{name}") if line.endswith("\n")]
        except FileNotFoundError:
            found = []
        if found and holds(found):
            return found
        time.sleep(0.1)
    raise AssertionError((name, found))

send = lambda payload: client.invoke(FunctionName="hello", InvocationType="Event", Payload=json.dumps(payload))["ResponseMetadata"]["RequestId"]
assert send({"do": "environment"})
id = send({"do": "fail", "n": "ü"})
(found,) = wait("letters", lambda found: True)
text = lambda value: {"DataType": "String", "StringValue": value}
assert json.loads(found["Body"]) == {"do": "fail", "n": "ü"}, found
assert found["MessageAttributes"] == {"RequestID": text(id), "ErrorMessage": text("as asked"), "ErrorCode": {"DataType": "Number", "StringValue": "200"}}, found
# The destination is told beside it.
(record,) = wait("failed", lambda found: True)
assert record["requestContext"]["requestId"] == id, record

# A function is given what it would find in a queue.
client.put_function_event_invoke_config(FunctionName="reader", DestinationConfig={"OnSuccess": {"Destination": f"file://{FOLDER}/read"}})
client.update_function_configuration(FunctionName="hello", DeadLetterConfig=letter(arn))
id = send({"do": "fail"})
(record,) = wait("read", lambda found: True)
(record,) = record["requestPayload"]["Records"]
assert json.loads(record["body"]) == {"do": "fail"} and record["messageAttributes"]["RequestID"]["stringValue"] == id, record

# An address has the attributes as headers.
got = []
class Endpoint(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        got.append((dict(self.headers), self.rfile.read(int(self.headers["content-length"]))))
        self.send_response(200)
        self.end_headers()
    def log_message(self, *_):
        pass
server = http.server.HTTPServer(("127.0.0.1", 0), Endpoint)
threading.Thread(target=server.serve_forever, daemon=True).start()
client.update_function_configuration(FunctionName="hello", DeadLetterConfig=letter(f"http://127.0.0.1:{server.server_port}/letters"))
id = send({"do": "fail"})
for _ in range(300):
    if got:
        break
    time.sleep(0.1)
headers, body = got[0]
headers = {name.lower(): value for name, value in headers.items()}
assert json.loads(body) == {"do": "fail"} and headers["requestid"] == id and headers["errormessage"] == "as asked", got
client.update_function_configuration(FunctionName="hello", DeadLetterConfig=letter(""))
assert "DeadLetterConfig" not in client.get_function_configuration(FunctionName="hello")

assert client.get_function_recursion_config(FunctionName="hello")["RecursiveLoop"] == "Terminate"
assert client.put_function_recursion_config(FunctionName="hello", RecursiveLoop="Allow")["RecursiveLoop"] == "Allow"
assert client.get_function_recursion_config(FunctionName="hello")["RecursiveLoop"] == "Allow"
assert client.get_runtime_management_config(FunctionName="hello")["UpdateRuntimeOn"] == "Auto"
assert client.list_layers()["Layers"] == [] and client.list_event_source_mappings(FunctionName="hello")["EventSourceMappings"] == []
refused("ResourceNotFoundException", lambda: client.list_event_source_mappings(FunctionName="nobody"))

# What is refused is refused before a stream begins.
client.put_function_concurrency(FunctionName="hello", ReservedConcurrentExecutions=0)
full = refused("TooManyRequestsException", lambda: client.invoke_with_response_stream(FunctionName="hello"))
assert full["Reason"] == "ReservedFunctionConcurrentInvocationLimitExceeded" and full["ResponseMetadata"]["HTTPStatusCode"] == 429, full
client.delete_function_concurrency(FunctionName="hello")
events = list(client.invoke_with_response_stream(FunctionName="hello", Payload=b"{}")["EventStream"])
assert "PayloadChunk" in events[0] and "InvokeComplete" in events[-1], events
"#;
    service.script(&world, &format!("{prepare}{text}"));
    service.stop();
    world.assert_nothing_left();
}
