//! Memory: the largest resident set of a publish, for a small image and for one of 2 GB.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};

use crate::Bench;
use crate::measure;
use crate::report::{Section, bytes, seconds};

pub(crate) fn measure(bench: &Bench) -> Result<Vec<Section>> {
    let mut section = Section::new(
        "Memory of a publish",
        "Largest resident memory of the process while it publishes. The large image has one file of 1 GiB and a thousand \
         of 1 MiB, half of it incompressible.",
        &["image", "size", "time", "peak memory"],
    );
    let numpy = format!("oci:{}:numpy", bench.images.layout()?.display());
    let large = large_image(bench)?;
    for (name, source, size) in [
        ("numpy", numpy.as_str(), super::tree_size(&bench.unpacked()?.join("rootfs"))?),
        ("large", large.as_str(), 2 << 30),
    ] {
        let place = bench.place("memory")?;
        let mut publish = bench.snowmelt(&place, &bench.path("memory-cache"));
        publish.args(["publish", source, "measured"]);
        let ran = measure::run(&mut measure::with_peak_memory(&publish)?)?;
        section.row([
            name.to_owned(),
            bytes(size as f64),
            seconds(ran.total.as_secs_f64()),
            bytes(measure::peak_memory(&ran)? as f64),
        ]);
        std::fs::remove_dir_all(&place)?;
    }
    Ok(vec![section])
}

/// Builds the image of 2 GiB; returns its source.
fn large_image(bench: &Bench) -> Result<String> {
    let tree = bench.path("large-tree");
    std::fs::create_dir_all(tree.join("many"))?;
    write_content(&tree.join("one"), 1 << 30, 1)?;
    for number in 0..1024_u64 {
        write_content(&tree.join(format!("many/{number:04}")), 1 << 20, number + 2)?;
    }
    let (archive, layout) = (bench.path("large.tar"), bench.path("large"));
    let image = format!("{}:large", layout.display());
    run(Command::new("tar")
        .args(["--create", "--sort=name", "--file"])
        .arg(&archive)
        .arg("--directory")
        .arg(&tree)
        .arg("."))?;
    std::fs::remove_dir_all(&tree)?;
    run(Command::new("umoci").args(["init", "--layout"]).arg(&layout))?;
    run(Command::new("umoci").args(["new", "--image", &image]))?;
    run(Command::new("umoci").args(["raw", "add-layer", "--image", &image]).arg(&archive))?;
    std::fs::remove_file(&archive)?;
    Ok(format!("oci:{image}"))
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output()?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Writes a file that compresses to about half, different for each `seed`: pages of noise and pages of one byte each.
fn write_content(path: &Path, size: usize, seed: u64) -> Result<()> {
    let mut file = File::create(path)?;
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut block = vec![0; 64 << 10];
    for _ in 0..size / block.len() {
        for (index, page) in block.chunks_exact_mut(4096).enumerate() {
            if index % 2 == 0 {
                for word in page.chunks_exact_mut(8) {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    word.copy_from_slice(&state.to_le_bytes());
                }
            } else {
                page.fill(state as u8 | 1);
            }
        }
        file.write_all(&block)?;
    }
    Ok(())
}
