//! The worker of a world's machine: started by a test that is about workers, or where tests run on a cluster, by the first command
//! that starts a sandbox.

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::Child;
use std::sync::PoisonError;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::world::{World, wait};

/// A worker of a world, which ends with it.
pub struct Worker {
    pub process: Child,
    /// What it said when it was ready.
    pub ready: Value,
}

impl Worker {
    /// One that the test is about: from now on the world starts none by itself.
    #[track_caller]
    pub fn start(world: &World, options: &[&str]) -> Self {
        world.machine().end(Machine::Without);
        Self::launch(world, &[], options)
    }

    #[track_caller]
    fn launch(world: &World, changes: &[(&str, Option<&str>)], options: &[&str]) -> Self {
        let fixed = ["--json", "worker", "--admin", "127.0.0.1:0", "--memory", "64MiB", "--disk-size", "1GiB"];
        let arguments = [&fixed, options].concat();
        let log = File::options().create(true).append(true).open(world.path("worker.log")).unwrap();
        let mut process = world.command_with(changes, arguments).stderr(log).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let log = std::fs::read_to_string(world.path("worker.log")).unwrap();
        Self { ready: serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}{log}")), process }
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.process.id().cast_signed()), signal).unwrap();
    }

    /// Asks it to end, and waits.
    #[track_caller]
    pub fn stop(mut self) {
        self.signal(Signal::SIGTERM);
        assert_eq!(wait(&mut self.process), 0);
    }

    pub fn kill(mut self) {
        self.signal(Signal::SIGKILL);
        wait(&mut self.process);
    }

    /// A counter of it, summed over its labels.
    pub fn metric(&self, name: &str) -> u64 {
        let address = self.ready["admin"].as_str().unwrap();
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        write!(stream, "GET /metrics HTTP/1.1\r\nhost: {address}\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let values =
            text.lines().filter_map(|line| line.strip_prefix(name)?.split(' ').next_back()?.parse::<u64>().ok());
        values.sum()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What a world has of a worker, but for those that its test starts.
pub enum Machine {
    /// None so far: the next command that starts a sandbox starts one.
    Due,
    /// This one, and what was different in the environment that it was started in.
    Has(Worker, Vec<(String, Option<String>)>),
    /// None.
    Without,
}

impl Machine {
    /// Ends the worker that it has, in order.
    #[track_caller]
    fn end(&mut self, then: Self) {
        if let Self::Has(worker, _) = std::mem::replace(self, then) {
            worker.stop();
        }
    }
}

fn owned(changes: &[(&str, Option<&str>)]) -> Vec<(String, Option<String>)> {
    changes.iter().map(|(name, value)| ((*name).to_owned(), value.map(str::to_owned))).collect()
}

/// Whether a command starts a sandbox.
fn is_start(arguments: &[OsString]) -> bool {
    let has = |word: &str| arguments.iter().any(|argument| argument == word);
    (has("run") || has("mount") || has("serve")) && !has("gc") && !has("--help")
}

impl World {
    fn machine(&self) -> std::sync::MutexGuard<'_, Machine> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The same world in which no worker is started but by the test, which is about that.
    pub fn without_worker(self) -> Self {
        self.machine().end(Machine::Without);
        self
    }

    /// Sees to it that a sandbox has its worker, where it is to have one: in the environment that its command has.
    #[track_caller]
    pub fn prepare_for(&self, changes: &[(&str, Option<&str>)], arguments: &[OsString]) {
        if !is_start(arguments) {
            return;
        }
        let mut machine = self.machine();
        match &*machine {
            Machine::Without => return,
            Machine::Has(_, of_worker) if *of_worker == owned(changes) => return,
            _ => machine.end(Machine::Due),
        }
        *machine = Machine::Has(Worker::launch(self, changes, &[]), owned(changes));
    }

    /// The worker's process, where the world has started one.
    pub fn worker_process(&self) -> Option<i32> {
        match &*self.machine() {
            Machine::Has(worker, _) => Some(worker.process.id().cast_signed()),
            _ => None,
        }
    }

    /// Ends the worker that the world has started, in order. The next sandbox gets another.
    #[track_caller]
    pub fn end_worker(&self) {
        let mut machine = self.machine();
        if matches!(*machine, Machine::Has(..)) {
            machine.end(Machine::Due);
        }
    }

    /// Kills it.
    pub fn kill_worker(&self) {
        let mut machine = self.machine();
        if matches!(*machine, Machine::Has(..))
            && let Machine::Has(worker, _) = std::mem::replace(&mut *machine, Machine::Due)
        {
            worker.kill();
        }
    }

    /// Forgets every chunk on this machine, where there are some; a zone may still have them. Sandboxes go on.
    #[track_caller]
    pub fn forget_chunks(&self) {
        let had_worker = self.worker_process().is_some();
        self.end_worker();
        let folder = if had_worker { "cache/worker" } else { "cache/chunks" };
        std::fs::remove_dir_all(self.path(folder)).unwrap();
        if had_worker {
            *self.machine() = Machine::Has(Worker::launch(self, &[], &[]), Vec::new());
        }
    }

    /// The process that serves the one sandbox there is.
    pub fn agent(&self) -> i32 {
        *self.agents().first().expect("there is a sandbox")
    }

    /// The processes that serve sandboxes.
    pub fn agents(&self) -> Vec<i32> {
        let state = std::fs::read_dir(self.path("state")).unwrap().flatten();
        let records = state.filter_map(|entry| std::fs::read(entry.path().join("record.json")).ok());
        let agent = |record: Vec<u8>| {
            let record: Value = serde_json::from_slice(&record).unwrap();
            // One that is being made has none yet.
            record["agent"]["pid"].as_i64().map(|pid| i32::try_from(pid).unwrap())
        };
        records.filter_map(agent).collect()
    }

    pub fn worker_status(&self) -> Value {
        self.json(&["worker", "status"])
    }
}
