//! Extensions: programs of the image beside the runtime, and threads within it, by the Extensions, Telemetry and Logs APIs.

use super::harness::Service;
use crate::world::{World, test_image};

/// The image with extensions, and what they saw. `one` listens at 4003, `three` at 4005.
const PRELUDE: &str = r#"
def make(one="quiet", three="quiet", name="hello", **more):
    more.setdefault("Environment", {"Variables": {}})["Variables"] |= {"MODE_ONE": one, "MODE_THREE": three}
    # Three Pythons begin at once: with the processor of little memory that takes longer than a beginning may.
    more.setdefault("MemorySize", 1024)
    return create(name, Code={"ImageUri": IMAGE}, **more)

def seen(port, path="/", name="hello"):
    return invoke({"do": "seen", "port": port, "path": path}, name=name)["Payload"]

def log(name="hello"):
    return open(f"{FOLDER}/logs/default/{name}/log").read()

def logged(*words, name="hello"):
    for _ in range(100):
        if all(word in log(name) for word in words):
            return log(name)
        time.sleep(0.1)
    raise AssertionError((words, log(name)))
"#;

#[track_caller]
fn script(world: &World, service: &Service, text: &str) {
    let folder = world.text("cache/functions");
    let image = format!("IMAGE = {:?}\nFOLDER = {folder:?}\n", test_image("extensions"));
    service.script(world, &format!("{image}{PRELUDE}{text}"));
}

#[test]
fn extensions_are_started_told_of_invocations_and_of_the_end() {
    let world = World::new();
    let service = Service::start(&world, &[]);
    script(
        &world,
        &service,
        r#"
make(one="telemetry", three="quiet", Environment={"Variables": {"OWN": "value", "TERMINATED": "yes"}})
first = invoke({"n": 1}, LogType="Tail")
assert first["Payload"]["invocations"] == 1, first
one, three = seen(4003), seen(4005)
assert one["registered"] == {"functionName": "hello", "functionVersion": "$LATEST", "handler": "", "accountId": "000000000000"}, one
# The function's own variables, and not those that are the runtime's.
assert one["environment"]["OWN"] == "value" and one["environment"]["AWS_LAMBDA_FUNCTION_NAME"] == "hello", one
assert not {"LAMBDA_TASK_ROOT", "AWS_LAMBDA_LOG_STREAM_NAME", "_HANDLER"} & set(one["environment"]), one
assert one["cwd"] == "/", one

events = one["events"]
assert [event["eventType"] for event in events] == ["INVOKE", "INVOKE"], events
assert events[0]["requestId"] == first["ResponseMetadata"]["RequestId"], events
assert events[0]["invokedFunctionArn"] == "arn:aws:lambda:us-east-1:000000000000:function:hello", events
assert 10 < events[0]["deadlineMs"] / 1000 - time.time() < 21, events
assert events[0]["tracing"]["type"] == "X-Amzn-Trace-Id" and len({event["id"] for event in events}) == 2, events
# Who does not want to know of invocations is not told.
assert three["events"] == [] and three["id"] != one["id"], three

kinds = [(status, json.loads(text)["errorType"]) for _, status, text in one["refused"]]
assert kinds == [
    (403, "Extension.InvalidExtensionState"), (403, "Extension.InvalidEventType"), (403, "Extension.InvalidExtensionName"),
    (403, "Extension.MissingExtensionIdentifier"), (403, "Extension.InvalidExtensionIdentifier"),
    (403, "Extension.UnknownExtensionIdentifier"), (403, "Extension.MissingHeader"), (400, "ValidationError"),
    (403, "Extension.MissingExtensionIdentifier")], one["refused"]

# What is told of: the first seconds too, which were before it could ask for that.
def telemetry():
    for _ in range(100):
        events = seen(4003)["telemetry"]
        done = [event for event in events if event["type"] == "platform.report"]
        if done and done[0]["record"]["requestId"] == first["ResponseMetadata"]["RequestId"]:
            return events
        time.sleep(0.05)
    raise AssertionError(events)
events = telemetry()
of = lambda kind: [event["record"] for event in events if event["type"] == kind]
order = [event["type"] for event in events if event["type"].startswith("platform.")]
assert order.index("platform.initStart") < order.index("platform.telemetrySubscription") < order.index("platform.initReport"), order
assert order.index("platform.initStart") < order.index("platform.initRuntimeDone") < order.index("platform.initReport") < order.index("platform.start"), order
start = of("platform.initStart")[0]
assert start["initializationType"] == "on-demand" and start["phase"] == "init" and start["functionName"] == "hello" and start["instanceMaxMemory"] == 1024 << 20, start
assert of("platform.telemetrySubscription")[0] == {"name": "one", "state": "Subscribed", "types": ["platform", "function", "extension"]}
assert {(e["name"], e["state"], tuple(e["events"])) for e in of("platform.extension")} == {("one", "Ready", ("INVOKE", "SHUTDOWN")), ("three", "Ready", ("SHUTDOWN",))}, events
assert of("platform.initRuntimeDone")[0]["status"] == "success" and of("platform.initReport")[0]["metrics"]["durationMs"] > 1, events
begun, done, report = of("platform.start")[0], of("platform.runtimeDone")[0], of("platform.report")[0]
assert begun["requestId"] == done["requestId"] == report["requestId"] and begun["version"] == "$LATEST", events
assert done["status"] == "success" and done["metrics"]["producedBytes"] > 10 and done["metrics"]["durationMs"] > 0, done
metrics = report["metrics"]
assert metrics["memorySizeMB"] == 1024 and metrics["maxMemoryUsedMB"] > 5 and metrics["initDurationMs"] > 1 and metrics["billedDurationMs"] >= metrics["durationMs"], metrics
assert 'got {"n": 1}\n' in of("function") and any("one was told" in line for line in of("extension")), events
assert all(len(event["time"]) == 24 and event["time"].endswith("Z") for event in events), events
logs = seen(4003)["logs"]
assert {"platform.start", "platform.report", "platform.logsSubscription", "function"} <= {event["type"] for event in logs}, logs
assert not {"platform.initStart", "extension"} & {event["type"] for event in logs}, logs

# The tail has what extensions wrote, too.
assert "EXTENSION\tName: one\tState: Ready\tEvents: [INVOKE, SHUTDOWN]\n" in log() and "three has begun" in log(), log()
client.update_function_configuration(FunctionName="hello", Description="other")
text = logged("the runtime was told to end", "one ends with", "three ends with")
assert '"shutdownReason": "spindown"' in text, text
assert text.index("the runtime was told to end") < text.index('"eventType": "SHUTDOWN"'), text
left = float(text.split("one ends with ")[1].split()[0])
assert 1.0 < left <= 2.0, left
"#,
    );
    service.stop();
    world.assert_nothing_left();
}

#[test]
fn a_sandbox_is_free_when_its_extensions_are() {
    let world = World::new();
    let service = Service::start(&world, &[]);
    script(
        &world,
        &service,
        r#"
# The answer does not wait for extensions, and the next invocation does.
make(one="hold", three="slow")
client.put_function_concurrency(FunctionName="hello", ReservedConcurrentExecutions=1)
began = time.time()
invoke()
answered = time.time()
assert answered - began > 1, "a sandbox has begun when all extensions have"
throttled = 0
for _ in range(100):
    try:
        answer = invoke()
        break
    except client.exceptions.TooManyRequestsException:
        throttled += 1
        time.sleep(0.1)
assert answer["Payload"]["invocations"] == 2, answer
assert throttled > 5 and 1.5 < time.time() - answered < 4, (throttled, time.time() - answered)
"#,
    );
    service.stop();
    world.assert_nothing_left();
}

#[test]
fn an_extension_that_fails_ends_its_sandbox() {
    let world = World::new();
    let service = Service::start(&world, &[]);
    script(
        &world,
        &service,
        r#"
def fails(mode, kind, message, payload={}, good=0):
    name = mode.split(",")[0]
    make(one=mode, three="quiet", name=name)
    for _ in range(good):
        assert "FunctionError" not in invoke(name=name)
    answer = invoke(payload, name=name)
    assert answer["FunctionError"] == "Unhandled" and answer["Payload"]["errorType"] == kind, answer
    assert answer["Payload"]["errorMessage"].startswith("RequestId: ") and answer["Payload"]["errorMessage"].endswith("Error: " + message), answer
    return name

fails("crash", "Extension.Crash", "exit status 4")
text = logged("Phase: init\tStatus: error\tError Type: Extension.Crash", "Phase: invoke\tStatus: error\tError Type: Extension.Crash", name="crash")
fails("initerror", "Extension.InitError", "Extension.NoWay")
logged("EXTENSION\tName: one\tState: InitError\tEvents: []\tError Type: Extension.NoWay", name="initerror")
# While the function runs.
fails("exit", "Extension.Crash", "exit status 5", {"do": "sleep", "seconds": 10})
text = logged('"shutdownReason": "failure"', "three ends with", name="exit")
fails("exiterror", "Extension.ExitError", "Extension.Enough", {"do": "sleep", "seconds": 10})

# A function that takes too long: the extensions are told of that, and one that stays is ended with the sandbox.
make(one="stay,hold", three="quiet", name="late", Timeout=2)
began = time.time()
answer = invoke({"do": "sleep", "seconds": 30}, name="late")
assert answer["Payload"]["errorType"] == "Sandbox.Timedout" and time.time() - began < 8, answer
text = logged('"shutdownReason": "timeout"', "three ends with", name="late")
assert "one ends with" not in text and text.count('"eventType": "SHUTDOWN"') == 2, text
assert invoke(name="late")["Payload"]["invocations"] == 1

# The runtime ends; the extensions may say their last word.
answer = invoke({"do": "exit"}, name="late")
assert answer["Payload"]["errorType"] == "Runtime.ExitError" and answer["Payload"]["errorMessage"].endswith("Runtime exited with error: exit status 3"), answer
logged('"shutdownReason": "failure"', name="late")
make(name="large", MemorySize=512, Timeout=30)
answer = invoke({"do": "memory", "mb": 700}, name="large")
assert answer["Payload"]["errorType"] == "Runtime.OutOfMemory" and "signal: killed" in answer["Payload"]["errorMessage"], answer

# A command that is not there, or is no program, with a process of ours to start it and without.
for number, (image, program) in enumerate([(IMAGE, "/no/such/program"), (IMAGE.replace(":extensions", ":lambda"), "/no/such/program"), (IMAGE.replace(":extensions", ":lambda"), "/etc/passwd")]):
    create(f"nothing{number}", Code={"ImageUri": image}, ImageConfig={"EntryPoint": [program]})
    answer = invoke(name=f"nothing{number}")
    assert answer["Payload"]["errorType"] == "Runtime.InvalidEntrypoint", answer
"#,
    );
    service.stop();
    world.assert_nothing_left();
}

#[test]
fn threads_of_the_runtime_are_extensions_too() {
    let world = World::new();
    let service = Service::start(&world, &[]);
    // Without programs in the image, and so without a process of ours.
    service.script(
        &world,
        r#"
create(Environment={"Variables": {"INTERNAL": "yes", "TERMINATED": "yes"}})
invoke()
for _ in range(100):
    seen = invoke({"do": "internal"})["Payload"]
    if len(seen) > 2:
        break
assert seen[0][0] == 403 and json.loads(seen[0][1])["errorType"] == "Extension.InvalidEventType", seen
assert seen[1] == [200, {"functionName": "hello", "functionVersion": "$LATEST", "handler": ""}], seen
assert seen[2][0] == 200 and seen[2][1]["eventType"] == "INVOKE", seen
client.update_function_configuration(FunctionName="hello", Description="other")
"#,
    );
    let log = world.path("cache").join("functions/logs/default/hello/log");
    crate::world::wait_until("the runtime was told", || {
        std::fs::read_to_string(&log).unwrap().contains("the runtime was told to end")
    });
    service.stop();
    world.assert_nothing_left();
}

#[test]
fn what_a_container_asks_of_its_host_is_bounded_and_hurts_nobody_else() {
    let world = World::new();
    let service = Service::start(&world, &[]);
    service.script(
        &world,
        r#"
import glob
create(MemorySize=1769, Timeout=60)
create(name="other")
invoke(name="other")
def memory_kb():
    found = []
    for status in glob.glob("/proc/[0-9]*/status"):
        try:
            words = open(status.replace("status", "cmdline")).read()
            if "function-host" in words and open(status.replace("status", "environ")).read().count(WORLD):
                found.append(int(next(line for line in open(status) if line.startswith("VmHWM")).split()[1]))
        except OSError:
            pass
    return max(found)
answers = []
attack = threading.Thread(target=lambda: answers.append(invoke({"do": "hostile", "seconds": 8})))
attack.start()
slowest = 0
while attack.is_alive():
    began = time.time()
    assert "FunctionError" not in invoke(name="other")
    slowest = max(slowest, time.time() - began)
    time.sleep(0.05)
attack.join()
# Whoever is asked so has an answer for its caller still, and the next one too.
said = answers[0]["Payload"]
assert "FunctionError" not in answers[0] and sum(said.values()) > 100, said
assert any(" 403 " in line or " 400 " in line or " 404 " in line for line in said), said
assert not any(" 5" in line[:12] for line in said), said
assert invoke()["Payload"]["invocations"] == 2
assert slowest < 5, slowest
assert memory_kb() < 400_000, memory_kb()
"#
        .replace("WORLD", &format!("{:?}", world.text("state")))
        .as_str(),
    );
    service.stop();
    world.assert_nothing_left();
}

#[test]
fn a_beginning_that_takes_too_long_is_tried_again_in_the_invocation() {
    let world = World::new();
    let service = Service::start(&world, &[]);
    service.script(
        &world,
        r#"
create(Environment={"Variables": {"SLOW_INIT": "11"}}, Timeout=15)
create(name="later", Environment={"Variables": {"SLOW_INIT": "60"}}, Timeout=2)
began = time.time()
answers = {}
threads = [threading.Thread(target=lambda name=name: answers.update({name: (invoke(name=name), time.time() - began)})) for name in ["hello", "later"]]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
answer, took = answers["hello"]
assert answer["Payload"]["invocations"] == 1 and 21 < took < 27, answers
# What beginning took is gone from the invocation's time.
assert answer["Payload"]["remaining"] < 4500, answer
answer, took = answers["later"]
assert answer["Payload"]["errorType"] == "Sandbox.Timedout" and answer["Payload"]["errorMessage"].endswith("Error: Task timed out after 2.00 seconds"), answer
assert 12 < took < 18, answers
"#,
    );
    for (function, words) in [
        ("hello", &["Phase: init\tStatus: timeout\n"] as &[&str]),
        ("later", &["Phase: init\tStatus: timeout\n", "Phase: invoke\tStatus: timeout\n"]),
    ] {
        let log = world.path("cache").join("functions/logs/default").join(function).join("log");
        let log = std::fs::read_to_string(log).unwrap();
        assert!(words.iter().all(|word| log.contains(word)), "{log}");
    }
    service.stop();
    world.assert_nothing_left();
}
