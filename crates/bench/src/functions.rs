//! `snowmelt serve` as a process, and the calls that measurements make of it.

use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::Bench;
use crate::http::{Answer, Client};
use crate::tiers::Process;

/// How long publishing an image may take, and how often that is looked at.
const PUBLISH_PATIENCE: Duration = Duration::from_mins(10);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A running service. Ended when dropped, and its sandboxes with it.
pub(crate) struct Service {
    process: Process,
    pub(crate) address: SocketAddr,
}

impl Service {
    /// Starts one; `command` is the binary as it is set up, without arguments but options.
    pub(crate) fn start(bench: &Bench, mut command: Command, options: &[&str]) -> Result<Self> {
        command.args(["--json", "serve", "--listen", "127.0.0.1:0", "--allow-local-images"]).args(options);
        let process = Process::start(&mut command, &bench.path("services.log"))?;
        let endpoint = process.said("endpoint")?;
        let address = endpoint.strip_prefix("http://").context("an endpoint")?.parse()?;
        Ok(Self { process, address })
    }

    pub(crate) fn id(&self) -> i32 {
        self.process.id()
    }

    pub(crate) fn connect(&self) -> Result<Client> {
        Client::connect(self.address)
    }

    /// Makes functions of images, and waits until all can be invoked. Gives how long that took.
    pub(crate) fn create(&self, functions: &[(String, String)], memory_mb: u32) -> Result<Duration> {
        let mut client = self.connect()?;
        let begun = Instant::now();
        for (name, image) in functions {
            let settings = json!({
                "FunctionName": name,
                "Role": "arn:aws:iam::000000000000:role/any",
                "PackageType": "Image",
                "Code": { "ImageUri": image },
                "MemorySize": memory_mb,
                "Timeout": 60,
            });
            let answer = client.call("POST", "/2015-03-31/functions", settings.to_string().as_bytes())?;
            expect(&answer, 201)?;
        }
        for (name, _) in functions {
            loop {
                let answer = client.call("GET", &format!("/2015-03-31/functions/{name}/configuration"), &[])?;
                expect(&answer, 200)?;
                let said: Value = serde_json::from_slice(&answer.body)?;
                match said["State"].as_str() {
                    Some("Active") => break,
                    Some("Pending") => {}
                    _ => anyhow::bail!("{name}: {said}"),
                }
                ensure!(begun.elapsed() < PUBLISH_PATIENCE, "{name} is not published");
                std::thread::sleep(LOOK_EVERY);
            }
        }
        Ok(begun.elapsed())
    }

    /// Gives a function another environment, so that the sandboxes that it has are not used again.
    pub(crate) fn forget_sandboxes(&self, name: &str, number: usize) -> Result<()> {
        let settings = json!({ "Environment": { "Variables": { "NUMBER": number.to_string() } } });
        let path = format!("/2015-03-31/functions/{name}/configuration");
        expect(&self.connect()?.call("PUT", &path, settings.to_string().as_bytes())?, 200)
    }

    /// Ends it and waits.
    pub(crate) fn stop(mut self) -> Result<()> {
        kill(Pid::from_raw(self.process.id()), Signal::SIGTERM)?;
        self.process.child.wait()?;
        Ok(())
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // It may have ended already. Sandboxes outlive a service that is killed, so it is asked first.
        if self.process.child.try_wait().is_ok_and(|status| status.is_none())
            && kill(Pid::from_raw(self.process.id()), Signal::SIGTERM).is_ok()
        {
            let _ = self.process.child.wait();
        }
    }
}

fn expect(answer: &Answer, status: u16) -> Result<()> {
    ensure!(answer.status == status, "{}: {}", answer.status, String::from_utf8_lossy(&answer.body));
    Ok(())
}

/// Where invocations of a function go.
pub(crate) fn path(name: &str) -> String {
    format!("/2015-03-31/functions/{name}/invocations")
}

/// Invokes once; gives the function's answer.
pub(crate) fn invoke(client: &mut Client, path: &str, payload: &[u8]) -> Result<Vec<u8>> {
    let answer = client.call("POST", path, payload)?;
    expect(&answer, 200)?;
    let failed = answer.header("x-amz-function-error");
    ensure!(failed.is_none(), "the function failed: {}", String::from_utf8_lossy(&answer.body));
    Ok(answer.body)
}
