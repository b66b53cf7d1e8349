//! What is killed, and what goes on for long: nothing accepted is lost, everybody is answered, and nothing stays or grows.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::harness::Service;
use crate::machine::Worker;
use crate::stores::only_on_files;
use crate::world::{World, finish, wait_until};

/// Callers, which go on until a file is there, and write a line for each call that ended.
const LOAD: &str = r#"
import collections, random, sys
progress = open(os.environ["PROGRESS"], "a", buffering=1)
lock, accepted, outcomes = threading.Lock(), set(), collections.Counter()
# An invocation may take its timeout, a start before that, and a start anew where what ran it was killed.
MOST_SECONDS = 60
wrong = []

def is_over():
    return os.path.exists(os.environ["STOP"])

def call(name, work):
    began = time.time()
    try:
        outcome = work()
    except botocore.exceptions.ClientError as error:
        code = error.response["Error"]["Code"]
        outcome = code
        if code not in ("ServiceException", "TooManyRequestsException"):
            wrong.append((name, str(error)))
    except (botocore.exceptions.EndpointConnectionError, botocore.exceptions.ConnectionClosedError, botocore.exceptions.HTTPClientError) as error:
        # Nobody listens, or who did was killed: the caller knows. A call that is not answered in time would be a lie.
        outcome = "no connection"
        if "timed out" in str(error).lower():
            wrong.append((name, str(error)))
        time.sleep(0.05)
    if time.time() - began > MOST_SECONDS:
        wrong.append((name, f"answered after {time.time() - began:.1f} s"))
    with lock:
        outcomes[outcome] += 1
        progress.write(f"{name} {outcome}\n")

def synchronous(seed):
    choice, mine, n = random.Random(seed), connect(), 0
    while not is_over():
        n += 1
        event = {"caller": seed, "n": n}
        if choice.random() < 0.3:
            event |= {"do": "sleep", "seconds": 0.1}
        def work():
            answer = mine.invoke(FunctionName="hello", Payload=json.dumps(event))
            said = json.loads(answer["Payload"].read())
            if "FunctionError" in answer:
                if said["errorType"] not in ("Runtime.ExitError", "Runtime.OutOfMemory", "Sandbox.Timedout"):
                    wrong.append(("sync", said))
                return said["errorType"]
            if said["event"] != event:
                wrong.append(("sync", said, event))
            return "answer"
        call("sync", work)

def events(seed):
    choice, mine, n = random.Random(seed), connect(), 0
    while not is_over():
        n += 1
        event = {"sender": seed, "n": n}
        if choice.random() < 0.3:
            event |= {"do": "sleep", "seconds": 0.2}
        def work():
            sent = mine.invoke(FunctionName="hello", InvocationType="Event", Payload=json.dumps(event))
            assert sent["StatusCode"] == 202, sent
            accepted.add((seed, n))
            return "accepted"
        call("event", work)
        time.sleep(0.05)

callers = [threading.Thread(target=synchronous, args=(seed,)) for seed in range(3)]
callers += [threading.Thread(target=events, args=(seed,)) for seed in range(2)]
[caller.start() for caller in callers]
[caller.join() for caller in callers]

# Every event that was accepted was run, or was given up after as many runs as it may have.
def dealt_with():
    found = set()
    for name in ("done", "failed"):
        try:
            lines = [line for line in open(f"{FOLDER}/{name}") if line.endswith("\n")]
        except FileNotFoundError:
            continue
        payloads = [json.loads(line)["requestPayload"] for line in lines]
        found |= {(payload["sender"], payload["n"]) for payload in payloads}
    return found
for _ in range(900):
    if accepted <= dealt_with():
        break
    time.sleep(0.1)
missing = accepted - dealt_with()
print(dict(outcomes), len(accepted), "events")
assert not missing, (len(missing), "of", len(accepted), sorted(missing)[:5], outcomes)
assert not wrong, wrong[:5]
assert outcomes["answer"] > 50 and len(accepted) > 20, outcomes
"#;

/// Cgroups of that name, in whatever hierarchy.
fn cgroups(name: &str) -> Vec<PathBuf> {
    fn look(directory: &Path, name: &str, depth: usize, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            if entry.file_name().to_string_lossy().contains(name) {
                found.push(entry.path());
            } else if depth > 0 {
                look(&entry.path(), name, depth - 1, found);
            }
        }
    }
    let mut found = Vec::new();
    look(Path::new("/sys/fs/cgroup"), name, 4, &mut found);
    found
}

/// Names of the sandboxes that are recorded.
fn sandboxes(world: &World) -> BTreeSet<String> {
    let entries = std::fs::read_dir(world.path("state")).into_iter().flatten().flatten();
    let named = entries.filter(|entry| entry.path().join("record.json").exists());
    named.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// What may be killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    Service,
    Host,
    Agent,
    Runtime,
    Worker,
}

fn with_argument(world: &World, argument: &str) -> Vec<i32> {
    let is_one = |pid: &i32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).nth(1) == Some(argument.as_bytes())
    };
    world.processes().into_iter().filter(is_one).collect()
}

fn runtimes(world: &World) -> Vec<i32> {
    let groups = sandboxes(world).into_iter().flat_map(|name| cgroups(&name));
    let processes = groups.filter_map(|group| std::fs::read_to_string(group.join("cgroup.procs")).ok());
    let all: BTreeSet<i32> = processes.flat_map(|text| text.lines().flat_map(str::parse).collect::<Vec<_>>()).collect();
    all.into_iter().collect()
}

/// A load that runs beside a test.
struct Load {
    process: Child,
    progress: PathBuf,
    stop: PathBuf,
}

impl Load {
    fn start(world: &World, service: &Service, folder: &Path, text: &str) -> Self {
        let (progress, stop) = (world.path("progress"), world.path("stop"));
        std::fs::write(&progress, "").unwrap();
        let text = format!("FOLDER = {:?}\n{text}", folder.to_str().unwrap());
        let variables = [("PROGRESS", progress.as_path()), ("STOP", stop.as_path())];
        Self { process: service.start_script(world, &text, &variables), progress, stop }
    }

    /// Calls that were answered with what the function gives.
    fn answers(&self) -> usize {
        let text = std::fs::read_to_string(&self.progress).unwrap();
        text.lines().filter(|line| line.ends_with(" answer")).count()
    }

    #[track_caller]
    fn end(self, log: &Path) -> String {
        std::fs::write(&self.stop, "").unwrap();
        let finished = finish(self.process);
        let log = std::fs::read_to_string(log).unwrap();
        assert_eq!(finished.code, 0, "{}{}\nthe service: {log}", finished.stdout(), finished.stderr);
        finished.stdout()
    }
}

/// Kills one thing after the other under load; each time it must go on before the next is killed.
#[track_caller]
fn kill_under_load(world: &World, victims: &[Victim], seed: u64, rounds: usize) {
    let folder = world.path("records/default");
    std::fs::create_dir_all(&folder).unwrap();
    let records = world.path("records");
    let options = ["--retry-after", "1s", "--idle", "3s", "--destinations", records.to_str().unwrap()];
    let mut worker = victims.contains(&Victim::Worker).then(|| Worker::start(world, &[]));
    let mut service = Service::start(world, &options);
    let address = service.address().to_owned();
    let prepare = format!("FOLDER = {:?}\n{PREPARE}", folder.to_str().unwrap());
    service.script(world, &prepare);
    let load = Load::start(world, &service, &folder, LOAD);
    let mut random = StdRng::seed_from_u64(seed);
    let mut seen = BTreeSet::new();
    let mut killed = Vec::new();
    for round in 0..rounds {
        let before = load.answers();
        wait_until(&format!("the load goes on after {killed:?} (seed {seed})"), || {
            seen.append(&mut sandboxes(world));
            load.answers() >= before + 12
        });
        // Each of them at least once, and then as it comes.
        let victim = *victims.get(round).unwrap_or(&victims[random.random_range(0..victims.len())]);
        killed.push(victim);
        let one_of = |mut pids: Vec<i32>, random: &mut StdRng| {
            pids.sort_unstable();
            // What was there a moment ago may have ended by itself.
            if !pids.is_empty() {
                let _ = kill(Pid::from_raw(pids[random.random_range(0..pids.len())]), Signal::SIGKILL);
            }
        };
        match victim {
            Victim::Service => {
                service.kill();
                service = Service::start_at(world, &address, &options);
            }
            Victim::Worker => {
                worker.take().unwrap().kill();
                worker = Some(Worker::start(world, &[]));
            }
            Victim::Host => one_of(with_argument(world, "function-host"), &mut random),
            Victim::Agent => one_of(world.agents(), &mut random),
            Victim::Runtime => one_of(runtimes(world), &mut random),
        }
    }
    let said = load.end(&world.path("service.log"));
    println!("killed {killed:?}: {said}");
    seen.append(&mut sandboxes(world));
    // Sandboxes that nobody calls end, and with them all that they had.
    wait_until("every sandbox has ended", || sandboxes(world).is_empty());
    wait_until("their hosts have ended", || with_argument(world, "function-host").is_empty());
    service.stop();
    if let Some(worker) = worker {
        worker.stop();
    }
    world.assert_nothing_left();
    let left: Vec<PathBuf> = seen.iter().flat_map(|name| cgroups(name)).collect();
    assert!(left.is_empty(), "cgroups are left: {left:?}");
    assert!(seen.len() > 2, "{seen:?}");
}

/// A function with records of what became of its events.
const PREPARE: &str = r#"
create()
to = lambda name: {"Destination": f"file://{FOLDER}/{name}"}
client.put_function_event_invoke_config(FunctionName="hello", DestinationConfig={"OnFailure": to("failed"), "OnSuccess": to("done")})
"#;

#[test]
fn killing_service_hosts_agents_and_sandboxes_loses_no_event_and_leaves_nothing() {
    only_on_files!();
    let world = World::new();
    let victims = [Victim::Service, Victim::Host, Victim::Agent, Victim::Runtime];
    kill_under_load(&world, &victims, 5, 12);
}

#[test]
fn killing_workers_and_their_agents_loses_no_event_and_leaves_nothing() {
    let world = World::new();
    kill_under_load(&world, &[Victim::Worker, Victim::Agent, Victim::Service, Victim::Runtime], 6, 10);
}

/// Every kind of call, over and over, with functions and sandboxes that come and go.
const MIXED: &str = r#"
import collections, random
progress = open(os.environ["PROGRESS"], "a", buffering=1)
wrong, lock = [], threading.Lock()
def is_over():
    return os.path.exists(os.environ["STOP"])
def work(seed):
    choice, mine, n = random.Random(seed), connect(), 0
    while not is_over():
        n += 1
        kind = choice.choices(["warm", "fail", "event", "stream", "large", "cold", "read", "settings", "function"], [60, 5, 12, 5, 2, 1, 5, 0.4, 0.2])[0]
        name = f"own-{seed}"
        try:
            if kind == "warm":
                assert json.loads(mine.invoke(FunctionName="hello", Payload=json.dumps({"n": n}))["Payload"].read())["event"] == {"n": n}
            elif kind == "fail":
                assert mine.invoke(FunctionName="hello", Payload=b'{"do": "fail"}')["FunctionError"] == "Unhandled"
            elif kind == "event":
                mine.invoke(FunctionName="hello", InvocationType="Event", Payload=json.dumps({"n": n} if n % 3 else {"do": "fail"}))
            elif kind == "stream":
                parts = mine.invoke_with_response_stream(FunctionName="hello", Payload=b'{"do": "large", "bytes": 100000}')["EventStream"]
                assert sum(len(part["PayloadChunk"]["Payload"]) for part in parts if "PayloadChunk" in part) == 100002
            elif kind == "large":
                mine.invoke(FunctionName="hello", Payload=json.dumps({"do": "large", "bytes": 2000000, "more": "x" * 500000}))["Payload"].read()
            elif kind == "cold":
                mine.invoke(FunctionName="hello", Payload=b'{"do": "exit"}')["Payload"].read()
            elif kind == "read":
                mine.get_function(FunctionName="hello"), mine.list_functions()
            elif kind == "settings":
                mine.update_function_configuration(FunctionName="hello", Environment={"Variables": {"NUMBER": str(n)}})
            elif kind == "function":
                mine.create_function(FunctionName=name, Role=ROLE, PackageType="Image", Code={"ImageUri": IMAGE}, Timeout=20)
                mine.get_waiter("function_active_v2").wait(FunctionName=name, WaiterConfig={"Delay": 1, "MaxAttempts": 60})
                assert mine.invoke(FunctionName=name)["StatusCode"] == 200
                mine.delete_function(FunctionName=name)
        except Exception as error:
            wrong.append((kind, repr(error)[:300]))
        progress.write(f"{kind} answer\n")
threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
[t.start() for t in threads]; [t.join() for t in threads]
print(collections.Counter(line.split()[0] for line in open(os.environ["PROGRESS"])))
assert not wrong, (len(wrong), wrong[:5])
"#;

/// What a service takes of the machine.
#[derive(Clone, Copy, Debug, Default)]
struct Taken {
    memory_kib: u64,
    files: usize,
    threads: u64,
    /// Files of its folder but for logs, which are bounded each.
    folder_bytes: u64,
    /// Sandboxes, and processes of the world.
    sandboxes: usize,
    processes: usize,
    mounts: usize,
}

impl Taken {
    fn now(world: &World, service: &Service) -> Self {
        let pid = service.process.id();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let field = |name: &str| -> u64 {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.split_whitespace().next().unwrap().parse().unwrap()
        };
        let folder = std::fs::read_dir(world.path("cache/functions")).unwrap().flatten();
        let lengths = folder.filter_map(|entry| entry.metadata().ok().filter(std::fs::Metadata::is_file));
        Self {
            memory_kib: field("VmRSS:"),
            files: std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count(),
            threads: field("Threads:"),
            folder_bytes: lengths.map(|file| file.len()).sum(),
            sandboxes: sandboxes(world).len(),
            processes: world.processes().len(),
            mounts: world.mounts().len(),
        }
    }

    fn most(all: &[Self]) -> Self {
        all.iter().fold(Self::default(), |most, one| Self {
            memory_kib: most.memory_kib.max(one.memory_kib),
            files: most.files.max(one.files),
            threads: most.threads.max(one.threads),
            folder_bytes: most.folder_bytes.max(one.folder_bytes),
            sandboxes: most.sandboxes.max(one.sandboxes),
            processes: most.processes.max(one.processes),
            mounts: most.mounts.max(one.mounts),
        })
    }
}

/// `SNOWMELT_SOAK_SECONDS` says for how long; `make soak` takes ten minutes.
#[test]
fn a_mixed_trace_leaves_nothing_growing() {
    only_on_files!();
    let seconds = std::env::var("SNOWMELT_SOAK_SECONDS").ok().map_or(24, |text| text.parse().unwrap());
    let world = World::new();
    let records = world.path("records/default");
    std::fs::create_dir_all(&records).unwrap();
    let destinations = world.path("records");
    let options = ["--retry-after", "1s", "--idle", "2s", "--destinations", destinations.to_str().unwrap()];
    let service = Service::start(&world, &options);
    service.script(&world, "create()");
    let load = Load::start(&world, &service, &records, MIXED);
    let (began, third) = (Instant::now(), Duration::from_secs(seconds) / 3);
    let mut samples: [Vec<Taken>; 3] = Default::default();
    // Samples are taken over time, since what is looked for is growth over time.
    while began.elapsed() < 3 * third {
        let part = (began.elapsed().as_secs_f64() / third.as_secs_f64()) as usize;
        samples[part.min(2)].push(Taken::now(&world, &service));
        std::thread::sleep(Duration::from_millis(200));
    }
    let calls = load.answers();
    let said = load.end(&world.path("service.log"));
    let [first, second, last] = samples.map(|part| Taken::most(&part));
    println!("{calls} calls {said}{first:?}\n{second:?}\n{last:?}");
    // The first third fills what is kept; after that there is no more than before, but for what comes and goes.
    let most = |a: u64, b: u64| a.max(b);
    assert!(last.memory_kib <= most(first.memory_kib, second.memory_kib) * 11 / 10 + 8192, "{second:?} {last:?}");
    // Each sandbox has its connection and its process, which come and go with it.
    let more = last.sandboxes.saturating_sub(first.sandboxes.max(second.sandboxes));
    assert!(last.files <= first.files.max(second.files) + 16 + 4 * more, "{second:?} {last:?}");
    // Those that wait for the disk, of which a slow one has more.
    assert!(last.threads <= most(first.threads, second.threads) + 32, "{second:?} {last:?}");
    assert!(
        last.folder_bytes <= most(first.folder_bytes, second.folder_bytes) * 11 / 10 + (2 << 20),
        "{second:?} {last:?}"
    );
    wait_until("every sandbox has ended", || sandboxes(&world).is_empty());
    let after = Taken::now(&world, &service);
    assert!(after.mounts <= 1, "{after:?} {:?}", world.mounts());
    service.stop();
    world.assert_nothing_left();
    assert!(calls > 100, "{calls}");
}
