//! The way from a sandbox to the outside, where the operator lets functions have one: `pasta`, of the package `passt`.
//!
//! It is a process beside the host that opens connections for the sandbox as any program of this machine would: nothing of the machine's
//! own network is changed, so that nothing can be left behind, and it ends with the host, however that ends. Each sandbox has its own, so
//! they do not see each other. What they may not reach is in the routes of the sandbox's namespace, which nobody in it may change: this
//! machine by any of its addresses, link-local addresses, where clouds tell machines who they are, and private networks unless those are
//! to be reached.

use std::io::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsRawFd as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::network::Namespace;

/// Where functions may connect to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OutgoingNetwork {
    /// Nowhere.
    #[default]
    None,
    /// The internet, and no private network.
    Public,
    /// Whatever this machine reaches, but not the machine itself.
    All,
}

impl std::str::FromStr for OutgoingNetwork {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(Self::None),
            "public" => Ok(Self::Public),
            "all" => Ok(Self::All),
            _ => Err("expected none, public or all".into()),
        }
    }
}

/// Addresses of the sandbox, its gateway and its name server: of a network that no route leads to (RFC 7335).
const ADDRESS: &str = "192.0.0.2";
const GATEWAY: &str = "192.0.0.1";
pub(super) const NAME_SERVER: &str = "192.0.0.3";
const PREFIX: &str = "29";
const INTERFACE: &str = "eth0";

/// What is never to be reached: machines' own networks, where clouds have their metadata (100.100.100.200 is one's), and what is no
/// single machine.
const NEVER: [&str; 5] = ["0.0.0.0/8", "169.254.0.0/16", "100.100.100.200/32", "224.0.0.0/4", "240.0.0.0/4"];
/// Networks that are not the internet (RFC 6890).
const PRIVATE: [&str; 5] = ["10.0.0.0/8", "100.64.0.0/10", "172.16.0.0/12", "192.168.0.0/16", "198.18.0.0/15"];

/// How long the interface may take to be there.
const PATIENCE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(1);

/// Programs that it needs, of Debian's packages `passt` and `iproute2`.
pub const PROGRAMS: [&str; 2] = ["pasta", "ip"];

/// The process that connects a sandbox.
pub(super) struct Outgoing(Child);

impl Outgoing {
    /// Starts it; `None` where there is to be no way out. Call it on a thread that lives as long as this process: it ends with that.
    pub(super) fn start(namespace: &Namespace, to: OutgoingNetwork) -> io::Result<Option<Self>> {
        if to == OutgoingNetwork::None {
            return Ok(None);
        }
        refuse(namespace, to)?;
        // Inherited, since nobody but this process has it in /proc.
        let namespace = namespace.file().try_clone()?;
        let path = format!("/proc/self/fd/{}", namespace.as_raw_fd());
        let mut command = Command::new("pasta");
        command.args(["--quiet", "--foreground", "--runas", "0:0", "--netns-only", "--config-net", "--ipv4-only"]);
        command.args(["--no-map-gw", "--no-dhcp", "--address", ADDRESS, "--netmask", PREFIX, "--gateway", GATEWAY]);
        command.args(["--dns-forward", NAME_SERVER, "--ns-ifname", INTERFACE]);
        // Nobody comes in, and nothing of this machine's own loopback is there.
        command.args(["--tcp-ports", "none", "--udp-ports", "none", "--tcp-ns", "none", "--udp-ns", "none"]);
        command.args(["--netns", &path]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let inherit = move || {
            rustix::io::fcntl_setfd(&namespace, rustix::io::FdFlags::empty())?;
            Ok(rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?)
        };
        // SAFETY: between fork and exec it makes two system calls and allocates nothing.
        #[allow(unsafe_code)]
        unsafe {
            command.pre_exec(inherit);
        }
        command.spawn().map(|child| Some(Self(child)))
    }

    /// Waits until the sandbox can use it.
    pub(super) fn wait(&mut self, namespace: &Namespace) -> io::Result<()> {
        let since = Instant::now();
        let has_address = || {
            namespace.inside(|| {
                let mut all = addresses()?;
                Ok(all.any(|address| address.to_string() == ADDRESS))
            })
        };
        while !has_address()? {
            if let Some(status) = self.0.try_wait()? {
                return Err(io::Error::other(format!("pasta ended ({status}): the sandbox has no way out")));
            }
            if since.elapsed() > PATIENCE {
                return Err(io::Error::other("pasta does not connect the sandbox"));
            }
            std::thread::sleep(PAUSE);
        }
        Ok(())
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Addresses of the namespace that the thread is in.
fn addresses() -> io::Result<impl Iterator<Item = Ipv4Addr>> {
    let all = nix::ifaddrs::getifaddrs()?;
    Ok(all.filter_map(|interface| match interface.address?.as_sockaddr_in()?.ip().into() {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    }))
}

/// Gives the namespace routes that lead nowhere, which are more specific than the one that will lead out.
fn refuse(namespace: &Namespace, to: OutgoingNetwork) -> io::Result<()> {
    let own = addresses()?.filter(|address| !address.is_loopback()).map(|address| format!("{address}/32"));
    let private: &[&str] = if to == OutgoingNetwork::Public { &PRIVATE } else { &[] };
    let mut refused: Vec<String> =
        NEVER.iter().chain(private).map(|network| (*network).to_owned()).chain(own).collect();
    refused.sort_unstable();
    refused.dedup();
    let lines: String = refused.iter().flat_map(|network| ["route add prohibit ", network, "\n"]).collect();
    let output = namespace.inside(|| {
        let mut command = Command::new("ip");
        command.args(["-batch", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        if let Some(mut input) = child.stdin.take() {
            input.write_all(lines.as_bytes())?;
        }
        child.wait_with_output()
    })?;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!("ip: {}", String::from_utf8_lossy(&output.stderr).trim())))
}
