//! What is mounted over the root file system: the kernel's file systems, generated files of /etc, volumes.

use std::io::Write as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::Inputs;
use crate::{Error, Network, RunSpec, Volume};

/// Files made for one container, bind-mounted over the image's.
pub(crate) struct EtcFiles {
    directory: PathBuf,
}

impl EtcFiles {
    /// Writes `hosts`, `hostname` and `resolv.conf` in `directory`. On the host's network a container sees the host's
    /// names and resolver; without a network only itself, and the name servers that are asked for.
    pub(crate) fn write(directory: &Path, hostname: &str, spec: &RunSpec) -> Result<Self, Error> {
        let of_host = |path: &str| match spec.network {
            Network::Host => std::fs::read(path).ok(),
            Network::None => None,
        };
        let hosts = of_host("/etc/hosts").unwrap_or_else(|| {
            format!("127.0.0.1\tlocalhost {hostname}\n::1\tlocalhost ip6-localhost ip6-loopback\n").into_bytes()
        });
        let mut hosts = hosts;
        for name in &spec.own_names {
            hosts.extend_from_slice(format!("127.0.0.1\t{name}\n").as_bytes());
        }
        let resolver = of_host("/etc/resolv.conf").unwrap_or_else(|| {
            spec.name_servers.iter().flat_map(|address| ["nameserver ", address, "\n"]).collect::<String>().into_bytes()
        });
        let hostname = format!("{hostname}\n").into_bytes();
        for (name, content) in [("hosts", hosts), ("hostname", hostname), ("resolv.conf", resolver)] {
            let path = directory.join(name);
            std::fs::write(&path, content).map_err(|source| Error::io("write", path.display(), source))?;
        }
        Ok(Self { directory: directory.to_owned() })
    }

    /// Puts a program beside them, and gives its path.
    pub(super) fn add_program(&self, program: &[u8]) -> Result<PathBuf, Error> {
        let path = self.directory.join("first-process");
        let io = |source| Error::io("write", path.display(), source);
        let mut options = std::fs::File::options();
        let mut file = options.write(true).create(true).truncate(true).mode(0o755).open(&path).map_err(io)?;
        file.write_all(program).map_err(io)?;
        // Whatever the umask is: the command may be another user's.
        file.set_permissions(std::fs::Permissions::from_mode(0o755)).map_err(io)?;
        Ok(path)
    }
}

pub(super) fn mounts(inputs: &Inputs<'_>) -> Result<Vec<Value>, Error> {
    let mut mounts = kernel_mounts();
    for name in ["resolv.conf", "hostname", "hosts"] {
        let options: &[&str] =
            if inputs.spec.read_only { &["rbind", "rprivate", "ro"] } else { &["rbind", "rprivate"] };
        mounts.push(json!({
            "destination": format!("/etc/{name}"), "type": "bind",
            "source": inputs.etc.directory.join(name), "options": options,
        }));
    }
    image_volumes(inputs, &mut mounts)?;
    for target in inputs.spec.writable.iter().filter(|_| inputs.spec.read_only) {
        inputs.root.make_directories(target)?;
        // The directory itself, once more: it is the mount of the root that is read-only, and not its file system.
        mounts.push(json!({
            "destination": target, "type": "bind", "source": own_directory(inputs.root_path, target)?,
            "options": ["rbind", "rprivate", "rw", "nosuid", "nodev"],
        }));
    }
    for volume in &inputs.spec.volumes {
        mounts.push(bind(volume)?);
    }
    Ok(mounts)
}

fn kernel_mounts() -> Vec<Value> {
    let mount = |destination: &str, kind: &str, source: &str, options: &[&str]| json!({ "destination": destination, "type": kind, "source": source, "options": options });
    vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        mount("/sys/fs/cgroup", "cgroup", "cgroup", &["ro", "nosuid", "noexec", "nodev"]),
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
    ]
}

/// Volumes that the image declares. The root's writes are discarded with the sandbox, as an anonymous volume's are, so
/// on a writable root a directory is enough; on a read-only one a memory file system with the directory's content makes
/// it writable.
fn image_volumes(inputs: &Inputs<'_>, mounts: &mut Vec<Value>) -> Result<(), Error> {
    let named = |target: &str| inputs.spec.volumes.iter().any(|volume| normal(&volume.target) == normal(target));
    for target in &inputs.image.volumes {
        if !target.starts_with('/') || normal(target).is_empty() || named(target) {
            continue;
        }
        if inputs.spec.read_only {
            mounts.push(json!({
                "destination": target, "type": "tmpfs", "source": "tmpfs",
                "options": ["nosuid", "nodev", "tmpcopyup", "mode=755"],
            }));
        } else {
            inputs.root.make_directories(target)?;
        }
    }
    Ok(())
}

/// Where a directory of the root lies on the host. A link in an image must not lead anywhere else.
fn own_directory(root: &Path, target: &str) -> Result<PathBuf, Error> {
    let path = normal(target).iter().fold(root.to_owned(), |path, part| path.join(part));
    let found = |path: &Path| path.canonicalize().map_err(|source| Error::io("find", path.display(), source));
    if found(&path)? == normal(target).iter().fold(found(root)?, |path, part| path.join(part)) {
        return Ok(path);
    }
    Err(Error::invalid(
        format!("writable directory {target}"),
        "there is a link on its way in the image: name the directory itself",
    ))
}

fn bind(volume: &Volume) -> Result<Value, Error> {
    if let Err(source) = std::fs::metadata(&volume.host) {
        return Err(Error::io("use the volume", volume.host.display(), source));
    }
    let access = if volume.read_only { "ro" } else { "rw" };
    Ok(json!({
        "destination": volume.target, "type": "bind", "source": volume.host,
        "options": ["rbind", "rprivate", access],
    }))
}

/// The parts of a path that matter for comparing two.
fn normal(path: &str) -> Vec<&str> {
    path.split('/').filter(|part| !part.is_empty() && *part != ".").collect()
}
