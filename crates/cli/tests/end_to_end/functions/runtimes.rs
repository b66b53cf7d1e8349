//! AWS's own runtime clients, unchanged: one function in three languages, asked for the same things, answers alike.

use super::READ_RECORDS;
use super::harness::Service;
use crate::stores::only_on_files;
use crate::world::World;

/// What the test is told of a runtime, as Python.
struct Runtime {
    image: &'static str,
    /// What a handler's error, an error while the function begins and a full file system are called.
    words: &'static str,
    /// What only this runtime does.
    own: &'static str,
}

#[test]
fn awslambdaric_runs_unchanged() {
    only_on_files!();
    runs(&Runtime {
        image: "lambda",
        words: r#"dict(error="ValueError", init=("RuntimeError", "cannot begin"), read_only="Read-only file system")"#,
        own: "",
    });
}

#[test]
fn aws_lambda_ric_runs_unchanged() {
    only_on_files!();
    runs(&Runtime {
        image: "lambda-node",
        words: r#"dict(error="AsAsked", init=("RangeError", "cannot begin"), read_only="EROFS")"#,
        own: r#"
failed = invoke({"do": "fail"})["Payload"]
assert any("app.mjs" in line for line in failed["trace"]), failed

# The same image, another handler.
create(name="streaming", ImageConfig={"Command": ["app.streaming"]})
def broken(answer, sent, end):
    assert answer == sent and end["ErrorCode"] == "AsAsked", (answer, end)
    assert "in the middle" in end["ErrorDetails"], end
streams("streaming", {}, lambda body: body, broken)
"#,
    });
}

#[test]
fn lambda_runtime_runs_unchanged() {
    only_on_files!();
    runs(&Runtime {
        image: "lambda-rust",
        words: r#"dict(error="AsAsked", init=("Runtime.ExitError", "exit status 1"), read_only="read-only filesystem or storage medium")"#,
        own: r#"
panicked = invoke({"do": "panic"})
assert panicked["FunctionError"] == "Unhandled" and "as asked" in panicked["Payload"]["errorMessage"], panicked
invoke()

# What it streams begins with what an HTTP answer would have.
def body(answer):
    prelude, rest = answer.split(b"\0" * 8, 1)
    assert json.loads(prelude)["statusCode"] == 200, prelude
    return rest
# It writes what should be the trailers of an answer that is broken off into the answer itself.
def broken(answer, sent, end):
    assert answer.startswith(sent + b"Lambda-Runtime-Function-Error-Type: Runtime.StreamError"), (answer, end)
streams("hello", {"do": "stream"}, body, broken)
"#,
    });
}

#[track_caller]
fn runs(runtime: &Runtime) {
    let world = World::new();
    let folder = world.path("records");
    std::fs::create_dir_all(folder.join("default")).unwrap();
    let service = Service::start(&world, &["--destinations", folder.to_str().unwrap()]);
    let folder = folder.join("default");
    let text = [
        &format!("FOLDER = {:?}\nWORDS = {}\n", folder.to_str().unwrap(), runtime.words),
        READ_RECORDS,
        ANSWERS,
        STREAMS,
        runtime.own,
        FAILURES,
    ];
    service.script_for(runtime.image, &world, &text.concat());
    service.stop();
    world.assert_nothing_left();
}

/// An answer and all that comes with it, large ones, many at once, and events.
const ANSWERS: &str = r#"
create(Timeout=60, MemorySize=512, Environment={"Variables": {"GREETING": "hello"}})
context = base64.b64encode(json.dumps({"custom": {"k": "v"}}).encode()).decode()
began = time.time()
answer = invoke({"a": [1, "ü"]}, LogType="Tail", ClientContext=context)
assert answer["StatusCode"] == 200 and "FunctionError" not in answer, answer
payload = answer["Payload"]
assert payload["event"] == {"a": [1, "ü"]} and payload["client"] == {"k": "v"}, payload
assert payload["id"] == answer["ResponseMetadata"]["RequestId"], payload
assert payload["arn"] == "arn:aws:lambda:us-east-1:000000000000:function:hello", payload
assert 60_000 - 1000 * (time.time() - began) - 1000 < payload["remaining"] <= 60_000, payload
assert (payload["name"], payload["version"], payload["memory"]) == ("hello", "$LATEST", 512), payload
assert payload["group"] == "/aws/lambda/hello" and "[$LATEST]" in payload["stream"], payload
log = base64.b64decode(answer["LogResult"]).decode()
assert "got {" in log and "Init Duration" in log, log
TRACE = "Root=1-5759e988-bd862e3fe1be46a994272793;Sampled=1"
client.meta.events.register_first("before-sign.lambda.Invoke", lambda request, **_: request.headers.add_header("X-Amzn-Trace-Id", TRACE))
environment = invoke({"do": "environment"})["Payload"]
assert environment["_X_AMZN_TRACE_ID"].startswith(TRACE), environment
for name, value in {"GREETING": "hello", "AWS_REGION": "us-east-1", "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "512",
                    "AWS_LAMBDA_LOG_GROUP_NAME": "/aws/lambda/hello", "LAMBDA_TASK_ROOT": "/var/task"}.items():
    assert environment[name] == value, (name, environment)
assert invoke()["Payload"]["invocations"] == 3

# The longest that may be, and one byte more.
LIMIT = 6 * 1024 * 1024
text = "x" * (LIMIT - len(json.dumps({"do": "length", "text": ""})))
assert invoke({"do": "length", "text": text})["Payload"] == len(text)
refused("RequestTooLargeException", lambda: invoke({"do": "length", "text": text + "x"}))
assert len(invoke({"do": "large", "bytes": LIMIT})["Payload"]) == LIMIT
large = invoke({"do": "large", "bytes": LIMIT + 100})
assert large["FunctionError"] == "Unhandled" and large["Payload"]["errorType"] == "Function.ResponseSizeTooLarge", large
invoke()

# As many as come at once have a sandbox each, once all run for longer than it takes to start the last.
for seconds in [2, 6, 18]:
    answers = []
    call = lambda: answers.append(invoke({"do": "sleep", "seconds": seconds})["Payload"])
    threads = [threading.Thread(target=call) for _ in range(8)]
    [t.start() for t in threads]; [t.join() for t in threads]
    assert len(answers) == 8 and len({a["id"] for a in answers}) == 8, answers
    sandboxes = {a["stream"] for a in answers}
    if len(sandboxes) == 8:
        break
else:
    raise AssertionError(answers)

client.put_function_event_invoke_config(FunctionName="hello", MaximumRetryAttempts=0, DestinationConfig={
    "OnSuccess": {"Destination": f"file://{FOLDER}/done"}, "OnFailure": {"Destination": f"file://{FOLDER}/failed"}})
sent = client.invoke(FunctionName="hello", InvocationType="Event", Payload=b'{"n": 1}')
assert sent["StatusCode"] == 202, sent
record = records("done", 1)[0]
assert record["responsePayload"]["event"] == {"n": 1}, record
assert record["responsePayload"]["id"] == sent["ResponseMetadata"]["RequestId"], record
client.invoke(FunctionName="hello", InvocationType="Event", Payload=b'{"do": "fail"}')
record = records("failed", 1)[0]
assert record["responsePayload"]["errorType"] == WORDS["error"], record
"#;

/// A streamed answer: as it comes, longer than any other may be, broken off, and asked for whole.
const STREAMS: &str = r#"
def streams(name, event, body, broken):
    def read(**more):
        chunks, times, end = [], [], None
        answer = client.invoke_with_response_stream(FunctionName=name, Payload=json.dumps(event | more))
        for part in answer["EventStream"]:
            assert end is None, part
            if "PayloadChunk" in part:
                chunks.append(part["PayloadChunk"]["Payload"])
                times.append(time.time())
            else:
                end = part["InvokeComplete"]
        return b"".join(chunks), times[-1] - times[0], end
    written = lambda parts, count: b"".join(b"%d:%s\n" % (part, b"x" * count) for part in range(parts))
    answer, took, end = read(parts=6, bytes=10, pause=500)
    assert body(answer) == written(6, 10) and "ErrorCode" not in end, (answer, end)
    assert took > 1, took
    answer, _, end = read(parts=20, bytes=1_000_000)
    assert body(answer) == written(20, 1_000_000) and "ErrorCode" not in end, (len(answer), end)
    answer, _, end = read(parts=3, bytes=10, pause=100, fail=True)
    broken(body(answer), written(3, 10), end)
    whole = client.invoke(FunctionName=name, Payload=json.dumps(event | {"parts": 2, "bytes": 3}))
    assert body(whole["Payload"].read()) == written(2, 3), whole
"#;

/// Errors, which cost a sandbox where the runtime ends with them, and only there.
const FAILURES: &str = r#"
# New sandboxes, so that what is counted is theirs.
client.update_function_configuration(FunctionName="hello", Timeout=10)
fails({"do": "fail"}, WORDS["error"], "as asked")
assert invoke()["Payload"]["invocations"] == 2
fails({"do": "exit"}, "Runtime.ExitError", "exit status 3")
assert invoke()["Payload"]["invocations"] == 1
fails({"do": "sleep", "seconds": 60}, "Sandbox.Timedout", "timed out after 10.00 seconds")
assert invoke()["Payload"]["invocations"] == 1
fails({"do": "memory", "mb": 1200}, "Runtime.OutOfMemory")
assert invoke({"do": "write", "path": "/var/task/x", "bytes": 1})["Payload"] == {"error": WORDS["read_only"]}
assert invoke({"do": "write", "path": "/tmp/x", "bytes": 1_000_000})["Payload"] == {"written": 1_000_000}

for how, expected in [("exception", WORDS["init"]), ("exit", ("Runtime.ExitError", "exit status 7"))]:
    client.update_function_configuration(FunctionName="hello", Environment={"Variables": {"FAIL_INIT": how}})
    fails({}, *expected)
client.update_function_configuration(FunctionName="hello", Environment={})
assert invoke()["Payload"]["invocations"] == 1
"#;
