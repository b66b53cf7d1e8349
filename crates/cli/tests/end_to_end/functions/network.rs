//! What functions reach: nothing, or the outside, and never this machine or each other.

use std::process::{Child, Command, Stdio};

use super::harness::{Service, python};
use crate::stores::only_on_files;
use crate::world::{World, wait_until};

/// Two network namespaces that are joined: one that stands for the machine, with a service in it, and one for all that is beyond it.
struct Network {
    machine: String,
    beyond: String,
    servers: Vec<Child>,
}

/// The machine, and what it reaches: a public address, a private one, and one where clouds have their metadata.
const MACHINE: &str = "203.0.113.2";
const PUBLIC: &str = "198.51.100.7";
const PRIVATE: &str = "10.99.0.7";
const METADATA: &str = "169.254.169.254";

fn tool(words: &str) {
    let mut words = words.split(' ');
    let output = Command::new(words.next().unwrap()).args(words.clone()).output().unwrap();
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
}

impl Network {
    fn new() -> Self {
        let name = |part: &str| format!("snowmelt-{part}-{}", std::process::id());
        let network = Self { machine: name("machine"), beyond: name("beyond"), servers: Vec::new() };
        let (machine, beyond) = (&network.machine, &network.beyond);
        for namespace in [machine, beyond] {
            tool(&format!("ip netns add {namespace}"));
            tool(&format!("ip -n {namespace} link set lo up"));
        }
        tool(&format!("ip link add near netns {machine} type veth peer name far netns {beyond}"));
        tool(&format!("ip -n {machine} addr add {MACHINE}/24 dev near"));
        tool(&format!("ip -n {machine} link set near up"));
        tool(&format!("ip -n {beyond} addr add 203.0.113.1/24 dev far"));
        for address in [PUBLIC, PRIVATE, METADATA] {
            tool(&format!("ip -n {beyond} addr add {address}/32 dev far"));
        }
        tool(&format!("ip -n {beyond} link set far up"));
        tool(&format!("ip -n {machine} route add default via 203.0.113.1"));
        network
    }

    /// A web server in one of them, and a name server that knows one name.
    fn serve(&mut self, in_machine: bool) {
        let namespace = if in_machine { &self.machine } else { &self.beyond };
        let mut command = Command::new("ip");
        command.args(["netns", "exec", namespace]).arg(python());
        command.args(["-c", SERVERS, if in_machine { MACHINE } else { PUBLIC }]);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.as_mut().unwrap()), &mut line).unwrap();
        assert_eq!(line, "ready\n");
        self.servers.push(child);
    }

    /// The same command, on the machine, with a name server that is beyond it.
    fn on_machine(&self, world: &World, command: &Command) -> Command {
        let resolver = world.path("resolv.conf");
        std::fs::write(&resolver, format!("nameserver {PUBLIC}\n")).unwrap();
        let mut wrapped = Command::new("nsenter");
        wrapped.arg(format!("--net=/run/netns/{}", self.machine));
        wrapped.args([
            "unshare",
            "--mount",
            "sh",
            "-c",
            "mount --bind \"$1\" /etc/resolv.conf && shift && exec \"$@\"",
        ]);
        wrapped.arg("sh").arg(&resolver).arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => wrapped.env(name, value),
                None => wrapped.env_remove(name),
            };
        }
        wrapped.current_dir(world.path(""));
        wrapped
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for server in &mut self.servers {
            let _ = server.kill();
            let _ = server.wait();
        }
        for namespace in [&self.machine, &self.beyond] {
            let _ = Command::new("ip").args(["netns", "del", namespace]).status();
        }
    }
}

const SERVERS: &str = r#"
import http.server, socket, struct, sys, threading
names = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
names.bind((sys.argv[1], 53))
def answer():
    while True:
        query, sender = names.recvfrom(2000)
        name = query[12:query.index(0, 12)]
        kind = struct.unpack(">H", query[12 + len(name) + 1:][:2])[0]
        known = name == b"\x07outside\x07example" and kind == 1
        reply = query[:2] + struct.pack(">HHHHH", 0x8180 if known or kind == 28 else 0x8183, 1, int(known), 0, 0) + query[12:12 + len(name) + 5]
        if known:
            reply += b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 60, 4) + bytes([198, 51, 100, 7])
        names.sendto(reply, sender)
threading.Thread(target=answer, daemon=True).start()
server = http.server.ThreadingHTTPServer(("0.0.0.0", 8080), http.server.SimpleHTTPRequestHandler)
print("ready", flush=True)
server.serve_forever()
"#;

/// Connections out of the function, by address and port.
const REACHES: &str = r#"
def reach(host, port=8080):
    return invoke({"do": "connect", "host": host, "port": port})["Payload"]
def reaches(host, port=8080):
    return reach(host, port).get("connected", False)
API = int(ENDPOINT.rsplit(":", 1)[1])
"#;

#[test]
fn functions_reach_what_they_may_and_never_the_machine() {
    only_on_files!();
    for (to, public, private) in [("public", true, false), ("all", true, true), ("none", false, false)] {
        let world = World::on_files();
        let mut network = Network::new();
        network.serve(true);
        network.serve(false);
        let start = |command: &Command| network.on_machine(&world, command);
        let service = Service::start_by(&world, "127.0.0.1:0", &["--outgoing-network", to], &start);
        let expected = |flag: bool| if flag { "True" } else { "False" };
        service.script_by(
            &world,
            &format!(
                r#"{REACHES}
create()
for host in ["{PUBLIC}", "outside.example"]:
    assert reaches(host) is {public}, (host, reach(host))
assert reaches("{PRIVATE}") is {private}
for host in ["{METADATA}", "{MACHINE}", "127.0.0.1", "192.0.0.1", "192.0.0.3", "0.0.0.0"]:
    assert not reaches(host), host
    assert not reaches(host, API), host
# Another sandbox has the same addresses, and is another's.
create(name="other")
running = threading.Thread(target=lambda: invoke({{"do": "listen", "port": 7000, "seconds": 3}}, name="other"))
running.start()
for _ in range(10):
    assert not reaches("192.0.0.2", 7000)
    time.sleep(0.1)
running.join()
# No packets of its own making, which no route would be asked for.
assert invoke({{"do": "raw"}})["Payload"] == {{"error": "Operation not permitted"}}
"#,
                public = expected(public),
                private = expected(private),
            ),
            &start,
        );
        // What connects a sandbox (`pasta`, or `passt.avx2` by its other name) ends with its host, whatever ends that.
        let of_sandboxes = |name: &str| processes_of(&network.machine, name);
        let hosts: Vec<i32> = of_sandboxes("snowmelt").into_iter().filter(|pid| is_host(*pid)).collect();
        let connected = if to == "none" { 0 } else { hosts.len() };
        assert!(hosts.len() >= 2 && of_sandboxes("pas").len() == connected, "{to}: {hosts:?}");
        for host in hosts {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(host), nix::sys::signal::Signal::SIGKILL).unwrap();
        }
        wait_until("what connected sandboxes is gone", || of_sandboxes("pas").is_empty());
        service.stop();
        world.assert_nothing_left();
    }
}

/// Processes of a program in a network namespace.
fn processes_of(namespace: &str, program: &str) -> Vec<i32> {
    let output = Command::new("ip").args(["netns", "pids", namespace]).output().unwrap();
    let pids = String::from_utf8(output.stdout).unwrap();
    let pids = pids.lines().filter_map(|line| line.trim().parse().ok());
    let runs = |pid: &i32| {
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm"));
        name.is_ok_and(|name| name.trim().starts_with(program))
    };
    pids.filter(runs).collect()
}

fn is_host(pid: i32) -> bool {
    let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    words.split(|byte| *byte == 0).any(|word| word == b"function-host")
}
