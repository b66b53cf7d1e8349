//! Limits on memory and processor time, through whichever cgroup version the machine has.

use std::path::Path;

use serde_json::{Value, json};

use crate::{Error, RunSpec};

/// Length of the scheduler's accounting period, in microseconds: the kernel's default and docker's.
const CPU_PERIOD_US: u64 = 100_000;

/// How this machine's cgroups are mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CgroupVersion {
    /// One hierarchy per controller, perhaps with a controllerless v2 beside them ("hybrid").
    V1,
    /// The unified hierarchy.
    V2,
}

impl CgroupVersion {
    pub(crate) fn probe() -> Self {
        // The file exists at the root of a v2 hierarchy and nowhere else.
        if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() { Self::V2 } else { Self::V1 }
    }
}

/// Fails if a limit is asked for that this machine cannot keep.
pub(crate) fn check(spec: &RunSpec, cgroups: CgroupVersion) -> Result<(), Error> {
    let available = |controller: &str| match cgroups {
        CgroupVersion::V1 => Path::new("/sys/fs/cgroup").join(controller).join("cgroup.procs").exists(),
        CgroupVersion::V2 => std::fs::read_to_string("/sys/fs/cgroup/cgroup.controllers")
            .is_ok_and(|controllers| controllers.split_whitespace().any(|name| name == controller)),
    };
    for (option, wanted, controller) in
        [("--memory", spec.memory_bytes.is_some(), "memory"), ("--cpus", spec.cpus.is_some(), "cpu")]
    {
        if wanted && !available(controller) {
            let reason =
                format!("this machine has no `{controller}` cgroup controller: mount it, or leave the option out");
            return Err(Error::invalid(option, reason));
        }
    }
    Ok(())
}

pub(super) fn resources(spec: &RunSpec, cgroups: CgroupVersion) -> Value {
    // The runtime adds the devices that every container has (null, zero, full, random, urandom, tty, pts).
    let mut resources = json!({ "devices": [{ "allow": false, "access": "rwm" }] });
    if let Some(bytes) = spec.memory_bytes {
        resources["memory"] = json!({ "limit": bytes });
        // docker's default allows as much swap again; on v1 that needs swap accounting, which kernels may lack.
        if cgroups == CgroupVersion::V2 {
            resources["memory"]["swap"] = json!(bytes.saturating_mul(2));
        }
    }
    if let Some(cpus) = spec.cpus {
        let quota = (cpus * CPU_PERIOD_US as f64).round() as u64;
        // The kernel accepts no quota below a millisecond.
        resources["cpu"] = json!({ "quota": quota.max(1000), "period": CPU_PERIOD_US });
    }
    resources
}
