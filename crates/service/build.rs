//! Builds the first process of containers with extensions, as a static program, with the compiler that builds the rest.

use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=first_process/main.rs");
    let variable = |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"));
    let program = PathBuf::from(variable("OUT_DIR")).join("first-process");
    let mut compiler = Command::new(variable("RUSTC"));
    compiler.args([
        "first_process/main.rs",
        "--edition",
        "2024",
        "--crate-name",
        "first_process",
        "--crate-type",
        "bin",
    ]);
    compiler.args(["--target", &variable("TARGET"), "-C", "target-feature=+crt-static", "-C", "panic=abort"]);
    compiler.args(["-C", "opt-level=s", "-C", "strip=symbols", "-o"]).arg(&program);
    if let Ok(linker) = std::env::var("RUSTC_LINKER") {
        compiler.args(["-C", &format!("linker={linker}")]);
    }
    match compiler.status() {
        Ok(status) if status.success() => {}
        Ok(status) => panic!("the first process of containers was not built ({status}): see above"),
        Err(error) => panic!("the compiler does not start: {error}"),
    }
}
