//! `snowmelt fn`: functions by our own commands.

use std::io::{BufRead as _, BufReader};
use std::process::Child;
use std::sync::mpsc::{Receiver, channel};

use serde_json::Value;

use super::harness::Service;
use crate::stores::only_on_files;
use crate::world::{Finished, PATIENCE, World, test_image, wait};

/// `snowmelt fn` with a service of the test.
fn functions(world: &World, service: &Service, arguments: &[&str]) -> Finished {
    world.snowmelt([&["fn", "--endpoint", &service.endpoint], arguments].concat())
}

fn json(finished: &Finished) -> Value {
    serde_json::from_slice(&finished.stdout).unwrap_or_else(|error| panic!("{error}: {}", finished.stdout()))
}

#[test]
fn functions_are_made_changed_listed_and_removed_by_commands() {
    only_on_files!();
    let world = World::new();
    let service = Service::start(&world, &[]);
    let image = test_image("lambda");
    let run = |arguments: &[&str]| functions(&world, &service, arguments);

    assert!(run(&["ls"]).success().stdout().contains("snowmelt fn create"));
    let settings = ["--memory", "256", "--timeout", "20", "--env", "GREETING=hello", "--description", "says hello"];
    let made = run(&[&["create", "hello", &image][..], &settings].concat()).success();
    assert_eq!(made.stdout(), "hello is ready: snowmelt fn invoke hello\n");
    run(&["create", "hello", &image]).failure(1, &["already exist"]);
    let now = json(
        &run(&["--json", "update", "hello", "--timeout", "21", "-e", "AB=b=c", "--unset-env", "GREETING"]).success(),
    );
    assert_eq!(
        (&now["Timeout"], &now["MemorySize"], &now["Description"]),
        (&21.into(), &256.into(), &"says hello".into())
    );
    assert_eq!(now["Environment"]["Variables"], serde_json::json!({ "AB": "b=c" }));
    run(&["update", "hello", "--unset-env", "GREETING"]).failure(1, &["no variable GREETING"]);
    run(&["update", "hello"]).failure(1, &["nothing is to be changed", "--image"]);
    run(&["update", "hello", "--image", &image, "--memory", "300"]).success();

    // What the image is told to run.
    run(&[
        "create",
        "other",
        &image,
        "--memory",
        "256",
        "--timeout",
        "20",
        "--no-wait",
        "--handler",
        "nothing.handler",
    ])
    .success();
    run(&["update", "other", "--timeout", "9"]).failure(1, &["in progress"]);
    run(&["create", "bad", "oci:/nowhere:at-all"])
        .failure(1, &["bad cannot be run", "/nowhere", "snowmelt fn update bad --image"]);
    run(&["update", "bad", "--image", &image]).success();
    run(&["update", "bad", "--image", "oci:/nowhere:at-all"]).failure(1, &["bad is as it was before", "/nowhere"]);

    let list = json(&run(&["--json", "ls"]).success());
    let names: Vec<&str> = list.as_array().unwrap().iter().map(|function| function["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["bad", "hello", "other"]);
    let table = run(&["ls"]).success().stdout();
    let line = |name: &str| {
        table
            .lines()
            .map(str::trim_start)
            .find(|line| line.starts_with(name))
            .unwrap()
            .split_whitespace()
            .collect::<Vec<_>>()
    };
    assert_eq!(line("hello")[1..6], ["active", "300", "MB", "21", "s"], "{table}");
    assert_eq!(line("bad")[1..3], ["update", "failed"], "{table}");

    run(&["rm", "bad", "nobody", "hello"]).failure(1, &["Function not found", "nobody", "snowmelt fn ls"]);
    run(&["rm", "other"]).success();
    assert_eq!(json(&run(&["--json", "ls"]).success()), serde_json::json!([]));
    service.stop();
    let nowhere = world.snowmelt(["fn", "--endpoint", "http://127.0.0.1:1", "ls"]);
    nowhere.failure(1, &["no service answers at http://127.0.0.1:1", "snowmelt serve", "--endpoint"]);
    world.snowmelt(["fn", "--endpoint", "127.0.0.1", "ls"]).failure(1, &["--endpoint 127.0.0.1", "http://"]);
    world.assert_nothing_left();
}

#[test]
fn answers_go_to_standard_output_and_failures_have_a_code_of_their_own() {
    only_on_files!();
    let world = World::new();
    let service = Service::start(&world, &[]);
    let run = |arguments: &[&str]| functions(&world, &service, arguments);
    run(&["create", "hello", &test_image("lambda"), "--memory", "256", "--timeout", "20"]).success();
    service.script(&world, "client.publish_version(FunctionName='hello')");

    let event = |finished: Finished| json(&finished.success())["event"].clone();
    assert_eq!(event(run(&["invoke", "hello"])), serde_json::json!({}));
    assert_eq!(event(run(&["invoke", "hello", r#"{"a": [1, "ü"]}"#])), serde_json::json!({ "a": [1, "ü"] }));
    assert_eq!(event(run(&["invoke", "hello", "-1"])), serde_json::json!(-1));
    std::fs::write(world.path("payload.json"), "\"from a file\"").unwrap();
    assert_eq!(event(run(&["invoke", "hello", "@payload.json"])), "from a file");
    let arguments = ["fn", "--endpoint", &service.endpoint, "invoke", "hello", "-"];
    assert_eq!(event(world.snowmelt_with_input(arguments, b"[\"from a pipe\"]")), serde_json::json!(["from a pipe"]));
    let arn = json(&run(&["invoke", "hello", "--qualifier", "1"]).success())["arn"].clone();
    assert!(arn.as_str().unwrap().ends_with(":hello:1"), "{arn}");
    let arn = "arn:aws:lambda:us-east-1:000000000000:function:hello";
    assert_eq!(event(run(&["invoke", arn, "7"])), 7);

    let tail = run(&["invoke", "hello", "--tail"]).success();
    assert!(
        tail.stderr.starts_with("START RequestId: ") && tail.stderr.contains("\nREPORT RequestId: "),
        "{}",
        tail.stderr
    );
    let failed = run(&["invoke", "hello", r#"{"do": "fail"}"#]);
    assert_eq!((failed.code, json(&failed)["errorType"].as_str()), (3, Some("ValueError")), "{}", failed.stderr);
    let failed = run(&["--json", "invoke", "hello", r#"{"do": "fail"}"#, "--tail"]);
    let said = json(&failed);
    assert_eq!((failed.code, &said["function_error"], &said["version"]), (3, &"Unhandled".into(), &"$LATEST".into()));
    assert!(
        said["log"].as_str().unwrap().contains("as asked") && said["payload"]["errorType"] == "ValueError",
        "{said}"
    );
    let accepted = run(&["invoke", "hello", "--event", "{}"]).success();
    assert!(accepted.stdout().is_empty() && accepted.stderr.starts_with("accepted as "), "{}", accepted.stderr);

    run(&["invoke", "hello", "world"]).failure(1, &["no JSON", "'\"text\"'"]);
    run(&["invoke", "hello", "@nowhere.json"]).failure(1, &["nowhere.json"]);
    run(&["invoke", "nobody"]).failure(1, &["Function not found", "snowmelt fn ls"]);
    run(&["invoke", "hello", "--qualifier", "9"]).failure(1, &["Function not found"]);
    service.script(&world, "client.put_function_concurrency(FunctionName='hello', ReservedConcurrentExecutions=0)");
    run(&["invoke", "hello"]).failure(1, &["TooManyRequestsException"]);
    service.stop();
    world.assert_nothing_left();
}

/// Lines as they come.
fn lines(child: &mut Child) -> Receiver<String> {
    let (sender, lines) = channel();
    let output = BufReader::new(child.stdout.take().unwrap());
    std::thread::spawn(move || output.lines().try_for_each(|line| sender.send(line.unwrap())));
    lines
}

/// Waits for a line that has the text in it; gives those before.
#[track_caller]
fn await_line(lines: &Receiver<String>, text: &str) -> Vec<String> {
    let mut before = Vec::new();
    loop {
        match lines.recv_timeout(PATIENCE) {
            Ok(line) if line.contains(text) => return before,
            Ok(line) => before.push(line),
            Err(error) => panic!("{error}: no line has {text:?}: {before:?}"),
        }
    }
}

#[test]
fn logs_are_followed_until_the_function_is_deleted() {
    only_on_files!();
    let world = World::new();
    let service = Service::start(&world, &[]);
    let run = |arguments: &[&str]| functions(&world, &service, arguments);
    run(&["create", "hello", &test_image("lambda"), "--memory", "256", "--timeout", "20"]).success();
    let follow = |more: &[&str]| {
        let arguments = [&["fn", "--endpoint", &service.endpoint, "logs", "-f", "hello"], more].concat();
        world.command(arguments).spawn().unwrap()
    };
    // There is nothing yet.
    assert_eq!(run(&["logs", "hello"]).success().stdout(), "");
    let mut early = follow(&[]);
    let early_lines = lines(&mut early);
    run(&["invoke", "hello", r#"{"mark": "one"}"#]).success();
    await_line(&early_lines, r#"got {"mark": "one"}"#);
    let whole = run(&["logs", "hello"]).success().stdout();
    assert!(whole.contains("START RequestId") && whole.contains("loading"), "{whole}");

    // Of several readers each sees everything from where it began.
    let (mut late, mut newest) = (follow(&["--lines", "2"]), follow(&["--since", "1h"]));
    let (late_lines, newest_lines) = (lines(&mut late), lines(&mut newest));
    await_line(&late_lines, "REPORT RequestId");
    await_line(&newest_lines, r#"got {"mark": "one"}"#);
    run(&["invoke", "hello", r#"{"mark": "two"}"#]).success();
    for lines in [&early_lines, &late_lines, &newest_lines] {
        let before = await_line(lines, r#"got {"mark": "two"}"#);
        assert!(before.iter().all(|line| !line.contains("got ")), "{before:?}");
    }
    let last = run(&["logs", "hello", "-n", "2"]).success().stdout();
    assert_eq!(last.lines().count(), 2, "{last}");
    let whole = run(&["logs", "hello"]).success().stdout();
    assert!(whole.ends_with(&last) && whole.contains("END RequestId: "), "{last} {whole}");
    let recent = run(&["logs", "hello", "--since", "1h"]).success().stdout();
    assert!(recent.contains("one") && recent.contains("two"), "{recent}");

    run(&["logs", "nobody"]).failure(1, &["Function not found", "snowmelt fn ls"]);
    run(&["logs", "../../etc"]).failure(1, &["InvalidParameterValue"]);
    run(&["rm", "hello"]).success();
    for mut follower in [early, late, newest] {
        assert_eq!(wait(&mut follower), 0);
    }
    service.stop();
    world.assert_nothing_left();
}
