//! A service for a test, and AWS's client for Python that calls it.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::world::{World, finish, repository, test_cache, test_image, wait};

/// What every script begins with: a client, and the few things that all of them do.
const PRELUDE: &str = r#"
import base64, json, os, threading, time, urllib.request
import boto3, botocore
from botocore.config import Config

ENDPOINT, IMAGE = os.environ["ENDPOINT"], os.environ["IMAGE"]
ROLE = "arn:aws:iam::000000000000:role/anything"

def connect(key="any", secret="any", **more):
    config = Config(retries={"max_attempts": 0}, read_timeout=60, **more)
    return boto3.client("lambda", endpoint_url=ENDPOINT, region_name="us-east-1", aws_access_key_id=key,
                        aws_secret_access_key=secret, config=config)

client = connect()

def create(name="hello", **more):
    settings = dict(MemorySize=256, Timeout=20, Role=ROLE, PackageType="Image", Code={"ImageUri": IMAGE}) | more
    made = client.create_function(FunctionName=name, **settings)
    client.get_waiter("function_active_v2").wait(FunctionName=name, WaiterConfig={"Delay": 1, "MaxAttempts": 60})
    return made

def invoke(payload={}, name="hello", **more):
    answer = client.invoke(FunctionName=name, Payload=json.dumps(payload), **more)
    answer["Payload"] = json.loads(answer["Payload"].read() or "null")
    return answer

def settle():
    """Waits until every sandbox is idle: who calls again at once may have another one started."""
    while True:
        with urllib.request.urlopen(ENDPOINT + "/_snowmelt/status") as status:
            if all(sandbox["phase"] == "idle" for sandbox in json.load(status)["sandboxes"]):
                return
        time.sleep(0.01)

def fails(payload, kind, *words):
    answer = invoke(payload)
    assert answer["StatusCode"] == 200 and answer["FunctionError"] == "Unhandled", answer
    assert answer["Payload"]["errorType"] == kind, answer
    for word in words:
        assert word in answer["Payload"]["errorMessage"], (word, answer)
    return answer

def refused(code, call, *words):
    try:
        call()
    except botocore.exceptions.ClientError as error:
        assert error.response["Error"]["Code"] == code, error
        for word in words:
            assert word in str(error), (word, error)
        return error.response
    raise AssertionError(f"{code} was expected")
"#;

/// A service of a world, which ends with it.
pub(crate) struct Service {
    pub(crate) process: Child,
    pub(crate) endpoint: String,
    /// Where people look at what it does.
    pub(crate) page: String,
}

impl Service {
    #[track_caller]
    pub(crate) fn start(world: &World, options: &[&str]) -> Self {
        Self::start_at(world, "127.0.0.1:0", options)
    }

    #[track_caller]
    pub(crate) fn start_at(world: &World, address: &str, options: &[&str]) -> Self {
        Self::start_by(world, address, options, &|command| again(command))
    }

    /// `wrap` gives what is run in a command's place.
    #[track_caller]
    pub(crate) fn start_by(world: &World, address: &str, options: &[&str], wrap: &dyn Fn(&Command) -> Command) -> Self {
        let log = std::fs::File::options().create(true).append(true).open(world.path("service.log")).unwrap();
        let arguments = [&["--json", "serve", "--listen", address, "--allow-local-images"], options].concat();
        let mut command = wrap(&world.command(arguments));
        let mut process = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let said: Value = serde_json::from_str(&line).unwrap_or_else(|error| {
            panic!("{error}: {line} {}", std::fs::read_to_string(world.path("service.log")).unwrap())
        });
        let text = |name: &str| said[name].as_str().unwrap().to_owned();
        Self { process, endpoint: text("endpoint"), page: text("page") }
    }

    pub(crate) fn address(&self) -> &str {
        self.endpoint.strip_prefix("http://").unwrap()
    }

    /// Asks it to end, and waits.
    #[track_caller]
    pub(crate) fn stop(mut self) {
        kill(Pid::from_raw(self.process.id().cast_signed()), Signal::SIGTERM).unwrap();
        assert_eq!(wait(&mut self.process), 0);
    }

    pub(crate) fn kill(mut self) {
        self.process.kill().unwrap();
        wait(&mut self.process);
    }

    /// Runs a script to its end; what is wrong ends it with an exception.
    #[track_caller]
    pub(crate) fn script(&self, world: &World, text: &str) {
        self.script_for("lambda", world, text);
    }

    /// The same by a process that is started otherwise.
    #[track_caller]
    pub(crate) fn script_by(&self, world: &World, text: &str, wrap: &dyn Fn(&Command) -> Command) {
        let mut python = self.client(world, &python());
        python.arg("-").env("IMAGE", test_image("lambda"));
        run(world, wrap(&python), &format!("{PRELUDE}\n{text}"));
    }

    /// The same where functions are of another test image.
    #[track_caller]
    pub(crate) fn script_for(&self, image: &str, world: &World, text: &str) {
        let mut python = self.client(world, &python());
        python.arg("-").env("IMAGE", test_image(image));
        run(world, python, &format!("{PRELUDE}\n{text}"));
    }

    /// Starts a script that runs beside the test.
    pub(crate) fn start_script(&self, world: &World, text: &str, variables: &[(&str, &Path)]) -> Child {
        let mut python = self.client(world, &python());
        python.arg("-").env("IMAGE", test_image("lambda")).envs(variables.iter().copied());
        let mut child = python.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        write!(child.stdin.take().unwrap(), "{PRELUDE}\n{text}").unwrap();
        child
    }

    /// A program that is to call the service, with no settings of this machine's.
    pub(crate) fn client(&self, world: &World, program: &Path) -> Command {
        let mut client = Command::new(program);
        client.env("ENDPOINT", &self.endpoint).env("HOME", world.path("home"));
        client.env("AWS_EC2_METADATA_DISABLED", "true");
        for variable in ["HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"] {
            client.env_remove(variable);
        }
        client
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The same command once more.
fn again(command: &Command) -> Command {
    let mut same = Command::new(command.get_program());
    same.args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => same.env(name, value),
            None => same.env_remove(name),
        };
    }
    if let Some(directory) = command.get_current_dir() {
        same.current_dir(directory);
    }
    same
}

/// Runs a client to its end, which is to be a good one.
#[track_caller]
pub(crate) fn run(world: &World, mut client: Command, input: &str) {
    let mut child = client.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // What ends before it has read all says why.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let finished = finish(child);
    let log = || std::fs::read_to_string(world.path("service.log")).unwrap();
    assert_eq!(finished.code, 0, "{}{}\nthe service: {}", finished.stdout(), finished.stderr, log());
}

/// A Python that has boto3: the one of the servers that tests use.
pub(crate) fn python() -> PathBuf {
    let python = test_cache().join("servers/bin/python");
    if !python.exists() {
        let status = Command::new(repository().join("scripts/test-servers")).arg("install").status().unwrap();
        assert!(status.success(), "scripts/test-servers install failed; see its messages above");
    }
    python
}

/// Where the other clients are: scripts/test-clients.
pub(crate) fn clients() -> PathBuf {
    static INSTALLED: OnceLock<PathBuf> = OnceLock::new();
    let install = || {
        let mut script = Command::new(repository().join("scripts/test-clients"));
        let output = script.env("SNOWMELT_TEST_CACHE", test_cache()).stderr(Stdio::inherit()).output().unwrap();
        assert!(output.status.success(), "scripts/test-clients failed; see its messages above");
        PathBuf::from(String::from_utf8(output.stdout).unwrap().trim_end())
    };
    INSTALLED.get_or_init(install).clone()
}
