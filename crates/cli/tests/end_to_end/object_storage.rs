//! What only happens with a bucket and a key service: mistakes in reaching them, and what is half done there. Everything that
//! folders do too is tested by the other files, on both.

use std::process::Command;
use std::time::{Duration, Instant};

use crate::world::{Finished, World, finish, test_image, wait_until};

/// Runs a command of the binary in a changed environment: `None` takes a variable away.
fn with(world: &World, changes: &[(&str, Option<&str>)], arguments: &[&str]) -> Finished {
    finish(world.command_with(changes, arguments).spawn().unwrap())
}

/// What a user is told fits on a line, and is no page of a server.
#[track_caller]
fn readable(finished: &Finished) {
    let message = &finished.stderr;
    assert!(!message.contains("<?xml") && message.lines().count() == 1 && message.len() < 1000, "{finished:?}");
}

const COMMANDS: [(&[&str], i32); 3] =
    [(&["images"], 1), (&["run", "small", "--", "true"], 125), (&["publish", "SOURCE", "new"], 1)];

/// Every command that needs the store says the same of what is wrong with it.
#[track_caller]
fn all_refuse(world: &World, changes: &[(&str, Option<&str>)], words: &[&str]) {
    for (command, code) in COMMANDS {
        let source = test_image("small");
        let command: Vec<&str> =
            command.iter().map(|word| if *word == "SOURCE" { source.as_str() } else { word }).collect();
        let started = Instant::now();
        let finished = with(world, changes, &command);
        println!("{command:?} {:?}: {}", started.elapsed(), finished.stderr);
        readable(&finished);
        finished.failure(code, words);
        assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
    }
}

#[test]
fn a_bucket_that_is_not_there() {
    let world = World::on_s3();
    let url = "s3://no-such-bucket/images";
    all_refuse(&world, &[("SNOWMELT_STORE", Some(url))], &[url, "there is no such bucket"]);
}

#[test]
fn credentials_that_are_wrong() {
    let world = World::on_s3();
    let words = ["the server does not accept the credentials", "secret"];
    all_refuse(&world, &[("AWS_SECRET_ACCESS_KEY", Some("not-the-secret"))], &words);
    all_refuse(&world, &[("AWS_ACCESS_KEY_ID", Some("NOBODY"))], &words);
}

#[test]
fn credentials_that_are_not_there() {
    let world = World::on_s3();
    let none = [("AWS_ACCESS_KEY_ID", None), ("AWS_SECRET_ACCESS_KEY", None)];
    all_refuse(&world, &none, &["there are no credentials", "AWS_ACCESS_KEY_ID", "AWS_PROFILE"]);
}

#[test]
fn credentials_from_files_and_from_programs() {
    let world = World::on_s3();
    let servers = world.servers().unwrap();
    world.snowmelt(["publish", &test_image("small"), "small"]).success();
    let (id, secret) = (&servers.access_key, &servers.secret_key);
    let (credentials, config) = (world.text("aws-credentials"), world.text("aws-config"));
    std::fs::write(&credentials, format!("[team]\naws_access_key_id = {id}\naws_secret_access_key = {secret}\n"))
        .unwrap();
    let answer = format!(r#"{{"Version": 1, "AccessKeyId": "{id}", "SecretAccessKey": "{secret}"}}"#);
    std::fs::write(world.path("answer"), answer).unwrap();
    let (program, asked) = (world.path("program"), world.path("asked"));
    let script = format!("#!/bin/sh\necho once >> {}\ncat {}\n", asked.display(), world.text("answer"));
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let process = format!("[profile process]\ncredential_process = {}\n", program.display());
    std::fs::write(&config, process).unwrap();
    for profile in ["team", "process"] {
        let changes = [
            ("AWS_ACCESS_KEY_ID", None),
            ("AWS_SECRET_ACCESS_KEY", None),
            ("AWS_SHARED_CREDENTIALS_FILE", Some(credentials.as_str())),
            ("AWS_CONFIG_FILE", Some(&config)),
            ("AWS_PROFILE", Some(profile)),
        ];
        let run = with(&world, &changes, &["run", "small", "--", "cat", "/etc/greeting"]).success();
        assert_eq!(run.stdout(), "hello from snowmelt\n", "{profile}");
        let _ = std::fs::remove_file(&asked);
        with(&world, &changes, &["publish", &test_image("small"), profile]).success();
    }
    // However many requests there are: once each for the store, the tenant's key and the salt secret's.
    let asked = std::fs::read_to_string(asked).unwrap();
    assert!((1..=3).contains(&asked.lines().count()), "{asked}");
    let missing = [("AWS_ACCESS_KEY_ID", None), ("AWS_SECRET_ACCESS_KEY", None), ("AWS_PROFILE", Some("nowhere"))];
    all_refuse(&world, &missing, &["there are no credentials"]);
}

#[test]
fn a_region_that_is_not_the_buckets() {
    let world = World::on_s3();
    // In the words of AWS: SeaweedFS does not look at regions.
    let body = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>AuthorizationHeaderMalformed</Code><Message>The \
                authorization header is malformed; the region 'us-east-1' is wrong; expecting 'eu-central-1'</Message>\
                <Region>eu-central-1</Region><RequestId>1</RequestId></Error>";
    let url = refusing("application/xml", body.to_owned());
    let changes = [("SNOWMELT_S3_ENDPOINT", Some(url.as_str())), ("AWS_REGION", Some("us-east-1"))];
    all_refuse(&world, &changes, &["another region", "AWS_REGION", "expecting 'eu-central-1'"]);
}

#[test]
fn a_manifest_that_was_read_is_read_here_again_and_what_is_damaged_there() {
    let world = World::on_s3();
    world.snowmelt(["publish", &test_image("small"), "small"]).success();
    let runs = || {
        let run = world.snowmelt(["run", "small", "--", "cat", "/etc/greeting"]).success();
        assert_eq!(run.stdout(), "hello from snowmelt\n");
    };
    runs();
    let kept: Vec<_> =
        std::fs::read_dir(world.path("cache/manifests")).unwrap().map(|entry| entry.unwrap().path()).collect();
    let [kept] = &kept[..] else { panic!("{kept:?}") };
    let bytes = std::fs::read(kept).unwrap();
    let long_ago = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    let used = || std::fs::metadata(kept).unwrap().modified().unwrap() != long_ago;
    let put_back = || std::fs::File::options().write(true).open(kept).unwrap().set_modified(long_ago).unwrap();
    put_back();
    runs();
    assert!(used(), "it is read");
    for damaged in [&bytes[..bytes.len() / 2], b"", &[0; 1000]] {
        std::fs::write(kept, damaged).unwrap();
        runs();
        assert!(std::fs::read(kept).unwrap() == bytes, "it is read from the store again");
    }
}

/// With `faketime`, which the binary and the agent that it starts take for the machine's clock.
#[test]
fn a_clock_that_is_off() {
    crate::stores::assert_is_partly_on_cluster(crate::stores::this_test!());
    let world = World::on_s3().without_worker();
    for offset in ["+2h", "-2h"] {
        for (arguments, code) in [(&["images"][..], 1), (&["run", "small", "--", "true"], 125)] {
            let snowmelt = world.command(arguments);
            let mut command = Command::new("faketime");
            command.args(["--exclude-monotonic", "-f", offset]).arg(snowmelt.get_program()).args(snowmelt.get_args());
            for (name, value) in snowmelt.get_envs() {
                match value {
                    Some(value) => command.env(name, value),
                    None => command.env_remove(name),
                };
            }
            command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
            let finished = finish(command.spawn().expect("faketime is installed by scripts/setup"));
            println!("{offset} {arguments:?}: {}", finished.stderr);
            readable(&finished);
            finished.failure(code, &["this machine's clock differs too much from the server's", "NTP"]);
        }
    }
}

#[test]
fn an_endpoint_without_tls_is_refused_unless_it_is_allowed() {
    let world = World::on_s3();
    let endpoint = world.servers().unwrap().s3.clone();
    all_refuse(&world, &[("SNOWMELT_ALLOW_HTTP", None)], &[&endpoint, "plain HTTP", "--allow-http"]);
    // A key service may not be reached so either, whatever the store is.
    let folder = world.text("folder");
    let changes = [("SNOWMELT_ALLOW_HTTP", None), ("SNOWMELT_STORE", Some(folder.as_str()))];
    with(&world, &changes, &["publish", &test_image("small"), "x"]).failure(1, &["awskms:", "TLS", "allow_http"]);
}

#[test]
fn servers_that_are_down() {
    let world = World::on_s3();
    world.snowmelt(["publish", &test_image("small"), "small"]).success();
    // Nothing listens there.
    let nowhere = "http://127.0.0.1:1";
    all_refuse(&world, &[("AWS_ENDPOINT_URL_S3", Some(nowhere))], &["does not answer", "s3://"]);
    let started = Instant::now();
    let changes = [("AWS_ENDPOINT_URL_KMS", Some(nowhere))];
    for (command, code) in [(&["run", "small", "--", "true"][..], 125), (&["publish", &test_image("small"), "x"], 1)] {
        let finished = with(&world, &changes, command);
        println!("{}", finished.stderr);
        finished.failure(code, &["awskms:"]);
    }
    assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());
}

/// A server that refuses everything in these words, which those of the tests never say. Gives its URL; it ends with the test's
/// process.
fn refusing(content_type: &'static str, body: String) -> String {
    use std::io::{BufRead as _, BufReader, Read as _, Write as _};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let mut client = BufReader::new(client);
            let mut body_bytes = 0;
            let mut line = String::new();
            while client.read_line(&mut line).is_ok_and(|bytes| bytes > 2) {
                let length = line.to_ascii_lowercase();
                if let Some(length) = length.strip_prefix("content-length:") {
                    body_bytes = length.trim().parse().unwrap();
                }
                line.clear();
            }
            let _ = std::io::copy(&mut client.by_ref().take(body_bytes), &mut std::io::sink());
            let head = format!("HTTP/1.1 400 Bad Request\r\nContent-Type: {content_type}\r\nConnection: close\r\n");
            let _ = write!(client.get_mut(), "{head}Content-Length: {}\r\n\r\n{body}", body.len());
        }
    });
    url
}

fn refusing_kms(code: &str, message: &str) -> String {
    refusing("application/x-amz-json-1.1", serde_json::json!({"__type": code, "message": message}).to_string())
}

#[test]
fn a_key_that_is_disabled_or_not_there() {
    let world = World::on_s3();
    world.snowmelt(["publish", &test_image("small"), "small"]).success();
    let key = crate::stores::KEYS.replace("{tenant}", "default");
    let check = |changes: &[(&str, Option<&str>)], words: &[&str]| {
        for (command, code) in [(&["run", "small", "--", "true"][..], 125), (&["publish", "SOURCE", "x"], 1)] {
            let (source, local) = (test_image("small"), ("SNOWMELT_SALT_KEY", Some("local")));
            let command: Vec<&str> =
                command.iter().map(|word| if *word == "SOURCE" { &source } else { *word }).collect();
            let finished = with(&world, &[changes, &[local]].concat(), &command);
            println!("{}", finished.stderr);
            readable(&finished);
            finished.failure(code, words);
        }
    };
    let arn = "arn:aws:kms:us-east-1:123456789012:key/1234";
    for (code, message, word) in [
        ("DisabledException", format!("{arn} is disabled."), "disabled"),
        ("KMSInvalidStateException", format!("{arn} is pending deletion."), "deleted"),
        ("AccessDeniedException", format!("User: x is not authorized to perform: kms:Decrypt on {arn}"), "kms:"),
    ] {
        let url = refusing_kms(code, &message);
        check(&[("AWS_ENDPOINT_URL_KMS", Some(&url))], &["\"default\"", &key, word, &message]);
    }
    // Nothing of that name: whoever mistypes an alias is told which.
    let missing = "awskms:alias/snowmelt-tests-nowhere";
    check(&[("SNOWMELT_KEYS", Some(missing))], &["\"default\"", missing]);
    world.snowmelt(["run", "small", "--", "true"]).success();
}

#[test]
fn a_key_of_another_tenant() {
    let world = World::on_s3();
    world.snowmelt(["publish", &test_image("small"), "small"]).success();
    let others = crate::stores::KEYS.replace("{tenant}", "other");
    let finished = with(&world, &[("SNOWMELT_KEYS", Some(&others))], &["run", "small", "--", "true"]);
    println!("{}", finished.stderr);
    readable(&finished);
    finished.failure(125, &["default", &others]);
    // A manifest that somebody moves to another tenant opens with neither's key.
    let store = world.objects("store");
    let named: Vec<_> =
        store.list().into_iter().map(|(path, _)| path).filter(|path| path.contains("/default/")).collect();
    for path in named {
        store.write(&path.replacen("/default/", "/other/", 1), store.read(&path));
    }
    let finished = world.snowmelt(["--tenant", "other", "run", "small", "--", "true"]);
    println!("{}", finished.stderr);
    readable(&finished);
    finished.failure(125, &["it belongs to tenant \"default\""]);
}

#[test]
fn a_publish_that_was_killed_leaves_no_name_and_the_next_puts_only_the_rest() {
    let world = World::on_s3();
    let rootfs = world.path("rootfs");
    std::fs::create_dir_all(&rootfs).unwrap();
    let mut state = 1_u64;
    let content: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    })
    .take(64 << 20)
    .collect();
    std::fs::write(rootfs.join("noise"), content).unwrap();
    let source = format!("dir:{}", rootfs.display());
    let mut child = world.command(["publish", &source, "noise"]).spawn().unwrap();
    wait_until("some of it is there", || world.chunk_files().len() >= 8);
    child.kill().unwrap();
    finish(child);
    let mut before = world.chunk_files().len();
    // What was under way still arrives.
    wait_until("nothing more arrives", || {
        std::thread::sleep(Duration::from_millis(300));
        let now = world.chunk_files().len();
        std::mem::replace(&mut before, now) == now
    });
    assert_eq!(world.json(&["images"]), serde_json::json!([]), "nothing is half published");
    let published = world.json(&["publish", &source, "noise"]);
    let number = |name: &str| usize::try_from(published[name].as_u64().unwrap()).unwrap();
    assert!(before < number("distinct_chunks"), "it was too late to kill it: {published}");
    assert_eq!(number("new_chunks"), number("distinct_chunks") - before, "{before} were there: {published}");
    assert_eq!(world.chunk_files().len(), number("distinct_chunks"));
    world.snowmelt(["verify", "noise"]).success();
}

#[test]
fn publishers_at_once_store_every_chunk_once() {
    let world = World::on_s3();
    let source = test_image("small");
    let children =
        ["one", "two", "one"].map(|name| world.command(["--json", "publish", &source, name]).spawn().unwrap());
    let reports =
        children.map(|child| serde_json::from_slice::<serde_json::Value>(&finish(child).success().stdout).unwrap());
    assert_eq!(world.chunk_files().len() as u64, reports[0]["distinct_chunks"].as_u64().unwrap());
    let new: u64 = reports.iter().map(|report| report["new_chunks"].as_u64().unwrap()).sum();
    assert_eq!(new, reports[0]["distinct_chunks"].as_u64().unwrap(), "each is new to one of them: {reports:?}");
    world.snowmelt(["verify", "one"]).success();
    world.snowmelt(["verify", "two"]).success();
}

/// What one machine learned of a start is known to the next.
#[test]
fn another_machine_knows_a_start() {
    let world = World::on_s3();
    world.snowmelt(["publish", &test_image("small"), "small"]).success();
    let reads = |cache: &str| {
        let (state, cache) = (world.text(&format!("{cache}-state")), world.text(cache));
        let machine = ["--json", "--state-dir", &state, "--cache-dir", &cache];
        let command = ["run", "small", "--stats", "--", "md5sum", "/data/pattern"];
        let finished = world.snowmelt([&machine[..], &command].concat()).success();
        let figures: serde_json::Value = serde_json::from_str(&finished.stderr).unwrap();
        figures["reads"].as_u64().unwrap()
    };
    let first = reads("first");
    let logs = || {
        let stored = world.objects("store").list();
        stored.into_iter().filter(|(path, _)| path.contains("/starts/")).collect::<Vec<_>>()
    };
    assert_eq!(logs().len(), 2, "its own and the first: {:?}", logs());
    let before = logs();
    // What is known is read in larger pieces.
    assert!(reads("second") < first);
    assert_eq!(logs(), before, "nothing changed, so nothing is put");
}
