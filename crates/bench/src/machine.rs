//! What the figures were measured on.

use std::process::Command;

use anyhow::Result;

/// Lines of `name: value` about processor, memory, kernel and the tools that are compared with.
pub(crate) fn describe() -> Result<Vec<(String, String)>> {
    let processors = std::fs::read_to_string("/proc/cpuinfo")?;
    let model = field(&processors, "model name").unwrap_or_else(|| "unknown".to_owned());
    let memory = field(&std::fs::read_to_string("/proc/meminfo")?, "MemTotal").unwrap_or_default();
    let memory_kib: u64 = memory.trim_end_matches(" kB").parse().unwrap_or(0);
    let flags = field(&processors, "flags").unwrap_or_default();
    let extensions: Vec<_> = ["aes", "vaes", "sha_ni", "avx2", "avx512f"]
        .into_iter()
        .filter(|wanted| flags.split(' ').any(|flag| flag == *wanted))
        .collect();
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    Ok(vec![
        ("processor".to_owned(), model),
        ("cores".to_owned(), std::thread::available_parallelism()?.to_string()),
        ("instructions".to_owned(), extensions.join(", ")),
        ("memory".to_owned(), format!("{:.0} GiB", memory_kib as f64 / f64::from(1 << 20))),
        // The release without a builder's own suffix.
        ("kernel".to_owned(), kernel.trim().split('-').next().unwrap_or_default().to_owned()),
        ("skopeo".to_owned(), version("skopeo", "--version")),
        ("umoci".to_owned(), version("umoci", "--version")),
        ("runc".to_owned(), version("runc", "--version")),
    ])
}

fn field(text: &str, name: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim().to_owned())
    })
}

/// The first line a tool prints about itself, without its name.
fn version(tool: &str, option: &str) -> String {
    let Ok(output) = Command::new(tool).arg(option).output() else { return "missing".to_owned() };
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().next().unwrap_or_default();
    line.rsplit(' ').next().unwrap_or_default().to_owned()
}
