//! The OCI runtime configuration of a container: what the image says, what the caller asks for, and the defaults that
//! `docker run` gives. Pure but for reads inside the root file system. The document is plain JSON; tests read it back
//! with an independent implementation of the format (crate `oci-spec`).

mod limits;
mod mounts;
mod process;
mod seccomp;

use std::path::Path;

use serde_json::{Value, json};
use snowmelt_image::ImageConfig;

use crate::root::Root;
use crate::{Error, Network, RunSpec};

pub(crate) use limits::{CgroupVersion, check as check_limits};
pub(crate) use mounts::EtcFiles;

/// The version of the runtime specification that the document keeps to: what runc 1.1 and crun 1.8 both know.
const OCI_VERSION: &str = "1.0.2";

/// The capabilities of a command that does not run as root by user id tricks: docker's default 14.
const CAPABILITIES: [&str; 14] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// Where a first process is in the container: on the file system of devices, so that the image's own is left alone.
const FIRST_PROCESS: &str = "/dev/snowmelt-first-process";

const MASKED_PATHS: [&str; 11] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];

const READ_ONLY_PATHS: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// What a configuration is made from.
pub(crate) struct Inputs<'a> {
    pub(crate) spec: &'a RunSpec,
    pub(crate) image: &'a ImageConfig,
    /// The mounted root file system, and where it is mounted.
    pub(crate) root: &'a Root,
    pub(crate) root_path: &'a Path,
    /// Generated files that appear in the container's /etc.
    pub(crate) etc: &'a EtcFiles,
    pub(crate) hostname: &'a str,
    pub(crate) cgroups: CgroupVersion,
}

/// The configuration, and the command as messages name it.
pub(crate) fn configuration(inputs: &Inputs<'_>) -> Result<(Value, String), Error> {
    let mut process = process::process(inputs)?;
    let command = process["args"][0].as_str().unwrap_or_default().to_owned();
    let mut mounts = mounts::mounts(inputs)?;
    let first = inputs.spec.first_process.as_ref().filter(|first| inputs.root.has_entries(&first.where_in_use));
    if let (Some(first), Some(words)) = (first, process["args"].as_array_mut()) {
        mounts.push(json!({
            "destination": FIRST_PROCESS, "type": "bind", "source": inputs.etc.add_program(first.program)?,
            "options": ["rbind", "rprivate", "ro", "nosuid", "nodev"],
        }));
        let before = [FIRST_PROCESS].into_iter().chain(first.arguments.iter().map(String::as_str));
        words.splice(0..0, before.map(Value::from));
    }
    let mut namespaces: Vec<Value> = ["pid", "ipc", "uts", "mount"].map(|kind| json!({ "type": kind })).into();
    if inputs.spec.network == Network::None {
        namespaces.push(match &inputs.spec.network_namespace {
            None => json!({ "type": "network" }),
            Some(path) => json!({ "type": "network", "path": path }),
        });
    }
    if inputs.cgroups == CgroupVersion::V2 {
        namespaces.push(json!({ "type": "cgroup" }));
    }
    let mut document = json!({
        "ociVersion": OCI_VERSION,
        "process": process,
        "root": { "path": inputs.root_path, "readonly": inputs.spec.read_only },
        "hostname": inputs.hostname,
        "mounts": mounts,
        "linux": {
            "resources": limits::resources(inputs.spec, inputs.cgroups),
            "namespaces": namespaces,
            "seccomp": seccomp::profile(seccomp::Abi::of(inputs.root, inputs.image)),
            "maskedPaths": MASKED_PATHS,
            "readonlyPaths": READ_ONLY_PATHS,
        },
    });
    if let Some(signal) = &inputs.image.stop_signal {
        document["annotations"] = json!({ "org.opencontainers.image.stopSignal": signal });
    }
    Ok((document, command))
}

#[cfg(test)]
mod tests;
