//! What the service counts and shows: metrics, `snowmelt top`, and who may look.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use serde_json::Value;

use super::harness::Service;
use crate::stores::only_on_files;
use crate::terminal::expect;
use crate::world::{PATIENCE, World, test_image, wait_until};

/// One request; gives the status and the body.
pub(super) fn get(address: &str, path: &str, headers: &[(&str, &str)]) -> (u16, String) {
    let host = if headers.iter().any(|(name, _)| *name == "host") { Vec::new() } else { vec![("host", address)] };
    let headers: Vec<String> = host.iter().chain(headers).map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let headers = headers.concat();
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\n{headers}connection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

fn status(service: &Service, headers: &[(&str, &str)]) -> Value {
    let (code, body) = get(service.address(), "/_snowmelt/status", headers);
    assert_eq!(code, 200, "{body}");
    serde_json::from_str(&body).unwrap()
}

#[test]
fn starts_are_counted_and_timed_by_their_parts() {
    only_on_files!();
    let world = World::new();
    let service = Service::start(&world, &[]);
    assert_eq!(get(service.address(), "/healthz", &[]), (200, "alive\n".into()));
    assert_eq!(get(service.address(), "/readyz", &[]).0, 200);
    service.script(
        &world,
        r#"
create()
for _ in range(4):
    invoke()
    settle()
assert "FunctionError" in invoke({"do": "fail"})
client.put_function_concurrency(FunctionName="hello", ReservedConcurrentExecutions=0)
refused("TooManyRequestsException", lambda: invoke())
client.delete_function_concurrency(FunctionName="hello")
"#,
    );
    // How it began is told when nobody waits for it.
    let find = || status(&service, &[])["functions"][0]["measures"].clone();
    wait_until("the start is told", || find()["phases"]["init"]["count"] == 1);
    let measures = find();
    for (name, count) in [
        ("invocations", 5),
        ("cold_starts", 1),
        ("warm_starts", 4),
        ("errors", 1),
        ("throttles", 1),
        ("faults", 0),
        ("running", 0),
    ] {
        assert_eq!(measures[name], count, "{name} {measures}");
    }
    for (name, count) in [("duration", 5), ("warm_overhead", 4), ("cold_start", 1)] {
        assert_eq!(measures[name]["count"], count, "{name} {measures}");
    }
    for phase in ["publish", "place", "mount", "start", "init", "first_byte"] {
        assert_eq!(measures["phases"][phase]["count"], 1, "{phase} {measures}");
    }
    // The parts are those of the whole: what they leave out is small, and what overlaps is the way from the host to the service.
    let us = |pointer: &str| measures.pointer(pointer).unwrap().as_u64().unwrap();
    let parts: u64 = ["place", "mount", "start", "init"].iter().map(|part| us(&format!("/phases/{part}/sum_us"))).sum();
    let whole = us("/cold_start/sum_us");
    assert!(parts < whole / 10 * 12 && parts > whole / 2, "{parts} of {whole}: {measures}");
    let chunks: u64 =
        ["memory", "disk", "zone", "origin"].iter().map(|tier| us(&format!("/reads/{tier}/chunks"))).sum();
    assert!(chunks > 0, "{measures}");

    let sandbox = &status(&service, &[])["sandboxes"][0];
    assert_eq!(
        (&sandbox["phase"], &sandbox["invocations"], &sandbox["function"]),
        (&"idle".into(), &5.into(), &"hello".into())
    );
    for part in ["container", "agent", "host"] {
        assert!(sandbox["memory"][part].as_u64().unwrap() > 100_000, "{part} {sandbox}");
    }
    let (code, text) = get(service.address(), "/metrics", &[]);
    assert_eq!(code, 200);
    for line in [
        "snowmelt_functions_invocations_total{tenant=\"default\",function=\"hello\"} 5",
        "snowmelt_functions_cold_starts_total{tenant=\"default\",function=\"hello\"} 1",
        "snowmelt_functions_warm_starts_total{tenant=\"default\",function=\"hello\"} 4",
        "snowmelt_functions_duration_seconds_count{tenant=\"default\",function=\"hello\"} 5",
        "snowmelt_functions_cold_start_phase_seconds_count{tenant=\"default\",phase=\"start\"} 1",
        "snowmelt_functions_sandboxes{tenant=\"default\",function=\"hello\",state=\"idle\"} 1",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }

    // The next service knows the sandbox again, and that its next invocation is no cold start.
    let address = service.address().to_owned();
    service.kill();
    let service = Service::start_at(&world, &address, &[]);
    wait_until("the sandbox is back", || status(&service, &[])["sandboxes"][0]["phase"] == "idle");
    service.script(&world, "assert invoke()['Payload']['invocations'] == 6");
    let measures = status(&service, &[])["functions"][0]["measures"].clone();
    assert_eq!((&measures["cold_starts"], &measures["warm_starts"]), (&0.into(), &1.into()), "{measures}");
    wait_until("its memory is known", || status(&service, &[])["sandboxes"][0]["memory"]["container"].is_u64());

    service.script(&world, "client.delete_function(FunctionName='hello')");
    // Its sandbox ends in a moment.
    wait_until("nothing is left of it", || !get(service.address(), "/metrics", &[]).1.contains("hello"));
    assert_eq!(status(&service, &[])["totals"]["invocations"], 1);
    service.stop();
    world.assert_nothing_left();
}

#[test]
fn only_who_may_looks() {
    only_on_files!();
    let world = World::new();
    let service = Service::start(&world, &[]);
    let code = |path: &str, headers: &[(&str, &str)]| get(service.address(), path, headers).0;
    for path in ["/_snowmelt/status", "/metrics"] {
        assert_eq!(code(path, &[]), 200);
        assert_eq!(code(path, &[("sec-fetch-site", "same-origin")]), 200);
        // Another site's page, by its own words and by the browser's; and a name that leads here.
        for header in [
            ("origin", "http://evil.example"),
            ("sec-fetch-site", "cross-site"),
            ("sec-fetch-site", "same-site"),
            ("host", "evil.example"),
        ] {
            assert_eq!(code(path, &[header]), 403, "{path} {header:?}");
        }
    }
    assert_eq!((code("/", &[]), code("/", &[("host", "evil.example")])), (200, 403));
    // Logs are read as the API is called.
    assert_eq!(code("/_snowmelt/functions/hello/log", &[]), 403);
    assert_eq!(code("/_snowmelt/nothing", &[]), 403);
    service.stop();

    let (keys, token) = (world.text("access-keys"), world.text("token"));
    std::fs::write(&keys, "AKIDONE secret-of-one default\nAKIDTWO secret-of-two other\n").unwrap();
    std::fs::write(&token, "short\n").unwrap();
    let arguments = ["serve", "--access-keys", &keys, "--status-token-file", &token];
    world.snowmelt(arguments).failure(1, &[&token, "at least 16"]);
    std::fs::write(&token, "0123456789abcdef\n").unwrap();
    let service = Service::start(&world, &["--access-keys", &keys, "--status-token-file", &token]);
    assert_eq!(service.page, format!("{}/#token=0123456789abcdef", service.endpoint));
    let code = |path: &str, headers: &[(&str, &str)]| get(service.address(), path, headers).0;
    for path in ["/_snowmelt/status", "/metrics"] {
        assert_eq!(code(path, &[]), 403);
        for wrong in ["Bearer 0123456789abcdeF", "Bearer ", "Bearer", "Basic 0123456789abcdef", "0123456789abcdef"] {
            assert_eq!(code(path, &[("authorization", wrong)]), 403, "{path} {wrong}");
        }
        assert_eq!(code(path, &[("authorization", "Bearer 0123456789abcdef")]), 200);
    }
    assert_eq!((code("/healthz", &[]), code("/", &[])), (200, 200));
    // The token is for looking.
    let bearer = ("authorization", "Bearer 0123456789abcdef");
    assert_eq!(code("/2015-03-31/functions", &[bearer]), 403);

    let one = [("AWS_ACCESS_KEY_ID", Some("AKIDONE")), ("AWS_SECRET_ACCESS_KEY", Some("secret-of-one"))];
    let two = [("AWS_ACCESS_KEY_ID", Some("AKIDTWO")), ("AWS_SECRET_ACCESS_KEY", Some("secret-of-two"))];
    let none = [("AWS_ACCESS_KEY_ID", None), ("AWS_SECRET_ACCESS_KEY", None)];
    let run = |who: &[(&str, Option<&str>)], arguments: &[&str]| {
        let command = world.command_with(who, arguments).spawn().unwrap();
        crate::world::finish(command)
    };
    let at = ["--endpoint", &service.endpoint];
    let image = test_image("lambda");
    let made = [&["fn"], &at[..], &["create", "mine", &image, "--memory", "256", "--timeout", "20"]].concat();
    run(&none, &made).failure(1, &["AWS_ACCESS_KEY_ID"]);
    run(&one, &made).success();
    run(&one, &[&["fn"], &at[..], &["invoke", "mine"]].concat()).success();
    assert!(run(&one, &[&["fn"], &at[..], &["ls"]].concat()).success().stdout().contains("mine"));
    assert!(!run(&two, &[&["fn"], &at[..], &["ls"]].concat()).success().stdout().contains("mine"));
    run(&two, &[&["fn"], &at[..], &["logs", "mine"]].concat()).failure(1, &["Function not found"]);
    let top = |who: &[(&str, Option<&str>)], more: &[&str]| run(who, &[&["top", "--once"], &at[..], more].concat());
    assert!(!top(&two, &[]).success().stdout().contains("mine"));
    assert!(top(&none, &["--token-file", &token]).success().stdout().contains("default/mine"));
    top(&none, &[]).failure(1, &["AWS_ACCESS_KEY_ID"]);
    service.stop();
    world.assert_nothing_left();
}

#[test]
fn top_shows_the_service_once_and_again_and_again() {
    only_on_files!();
    let world = World::new();
    let service = Service::start(&world, &[]);
    let once = || world.snowmelt(["top", "--once", "--endpoint", &service.endpoint]).success().stdout();
    assert!(once().contains("0 busy, 0 idle, 0 starting"));
    service.script(&world, "create()\ninvoke()\nsettle()\ninvoke()\nsettle()");
    let text = once();
    for words in ["2: 1 cold, 1 warm; 0 failed", "0 busy, 1 idle", "warm overhead", "first byte", "hello"] {
        assert!(text.contains(words), "{words}\n{text}");
    }
    // Without a terminal it says so, and ends.
    let plain = world.snowmelt(["top", "--endpoint", &service.endpoint]).success();
    assert!(plain.stdout().contains("hello") && plain.stderr.contains("no terminal"), "{}", plain.stderr);
    let status = world.json(&["top", "--endpoint", &service.endpoint]);
    assert_eq!(status["totals"]["invocations"], 2);
    world.snowmelt(["top", "--endpoint", "http://127.0.0.1:1"]).failure(1, &["no service answers"]);

    let pid = service.process.id();
    expect(
        &world,
        &format!(
            "set stty_init \"rows 40 columns 120\"
            start $snowmelt top --endpoint {}
            # What has not changed is not drawn: at another size everything is drawn anew.
            proc drawn {{word}} {{
                global spawn_id spawn_out
                for {{set tries 0}} {{$tries < 60}} {{incr tries}} {{
                    stty rows [expr {{20 + $tries % 2}}] columns 90 < $spawn_out(slave,name)
                    exec kill -WINCH [exp_pid]
                    expect {{
                        -timeout 1 $word {{ return }}
                        timeout {{}}
                    }}
                }}
                wanted $word
            }}
            expect \"overhead\"
            expect \"hello\"
            send \"s\"
            drawn \"second\"
            drawn \"hello\"
            exec kill -STOP {pid}
            drawn \"trying\"
            exec kill -CONT {pid}
            drawn \"tenant\"
            send \"q\"
            expect eof {{}}
            set result [wait]
            exit [expr {{[lindex $result 3] == 0 ? 0 : 98}}]",
            service.endpoint
        ),
    );
    // A terminal that goes away takes it with it.
    expect(
        &world,
        &format!(
            "set stty_init \"rows 40 columns 120\"
            start $snowmelt top --endpoint {}
            expect \"hello\"
            set pid [exp_pid]
            close
            set result [wait]
            exit [expr {{[file exists /proc/$pid] ? 97 : 0}}]",
            service.endpoint
        ),
    );
    service.stop();
    world.assert_nothing_left();
}
