#![allow(clippy::unwrap_used)]
use proptest::prelude::*;
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

use super::*;

fn options(mode: u32) -> SimpleFileOptions {
    SimpleFileOptions::default().unix_permissions(mode)
}

/// An archive of these files.
fn package(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in files {
        writer.start_file(*name, options(0o600)).unwrap();
        writer.write_all(bytes).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

fn link(name: &str, target: &str, beside: &[&str]) -> Vec<u8> {
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    writer.add_symlink(name, target, options(0o777)).unwrap();
    for file in beside {
        writer.start_file(*file, options(0o644)).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

fn layer(package: &[u8]) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    write_layer(package, &mut bytes).map(|_| bytes)
}

/// Paths with modes, and what they hold or point to.
fn entries(layer: &[u8]) -> Vec<(String, u32, String)> {
    let mut archive = tar::Archive::new(layer);
    let entries = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().display().to_string();
        let mut text = String::new();
        entry.read_to_string(&mut text).unwrap();
        if let Some(target) = entry.link_name().unwrap() {
            text = format!("-> {}", target.display());
        }
        (path, entry.header().mode().unwrap(), text)
    });
    entries.skip(2).collect()
}

#[test]
fn files_are_in_the_task_folder_and_readable() {
    let long = "d/".repeat(90) + "file";
    let made = package(&[("app.py", b"code"), ("./lib//x.py", b"more"), (&long, b"deep")]);
    let layer = layer(&made).unwrap();
    let expected = [("app.py", "code"), ("lib/x.py", "more"), (long.as_str(), "deep")];
    let expected: Vec<_> =
        expected.iter().map(|(path, text)| (format!("var/task/{path}"), 0o644, (*text).to_owned())).collect();
    assert_eq!(entries(&layer), expected);
    assert_eq!(layer, self::layer(&made).unwrap());
    assert_eq!(
        entries(&self::layer(&link("bin/tool", "../lib/tool.js", &["lib/tool.js"])).unwrap())[0].2,
        "-> ../lib/tool.js"
    );
}

#[test]
fn what_is_not_taken_is_named() {
    for (name, word) in [
        ("../x", "out of the package"),
        ("a/../../x", "out of the package"),
        ("/etc/passwd", "begins with a slash"),
        ("a\\b", "backslash"),
        ("a\nb", "control"),
        ("a/.wh..wh..opq", ".wh."),
        (".wh.app.py", ".wh."),
        (&"x".repeat(256), "longer than 255"),
        (&"x/".repeat(2001), "longer than 4000"),
    ] {
        let error = layer(&package(&[(name, b"")])).unwrap_err();
        assert!(error.contains(word), "{name:?}: {error}");
    }
    for (target, word) in
        [("/etc/passwd", "not in the package"), ("../../x", "not in the package"), ("", "not in the package")]
    {
        let error = layer(&link("a/b", target, &[])).unwrap_err();
        assert!(error.contains(word), "{target:?}: {error}");
    }
    assert!(layer(&link("a", "b", &["a/x"])).unwrap_err().contains("no folder"));
    assert!(layer(&package(&[("a", b""), ("./a", b"")])).unwrap_err().contains("twice"));
    assert!(layer(&package(&[("a/b", b""), ("a", b"")])).unwrap_err().contains("twice"));
    assert!(layer(b"no zip").unwrap_err().starts_with("Could not unzip uploaded file"));
}

#[test]
fn what_readers_would_see_differently_is_refused() {
    let made = package(&[("aa.py", b"one"), ("bb.py", b"two")]);
    let places = |name: &[u8]| -> Vec<usize> {
        (0..made.len() - name.len()).filter(|at| &made[*at..*at + name.len()] == name).collect()
    };
    let names = places(b"bb.py");
    assert_eq!(names.len(), 2);
    let renamed = |places: &[usize]| {
        let mut made = made.clone();
        for at in places {
            made[*at..*at + 5].copy_from_slice(b"aa.py");
        }
        layer(&made)
    };
    // Twice under one name; and under one name here and another there.
    for places in [&names[..], &names[..1], &names[1..]] {
        assert!(renamed(places).is_err(), "{places:?}");
    }
}

#[test]
fn what_was_written_without_going_back_is_a_package() {
    let mut bytes = Vec::new();
    let mut writer = ZipWriter::new_stream(&mut bytes);
    writer.start_file("app.py", options(0o644)).unwrap();
    writer.write_all(b"code").unwrap();
    writer.finish().unwrap();
    assert_eq!(entries(&layer(&bytes).unwrap()), [("var/task/app.py".to_owned(), 0o644, "code".to_owned())]);
}

#[test]
fn what_unpacks_to_too_much_is_refused_before_it_is_there() {
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    let piece = vec![0; 1 << 20];
    for file in 0..3 {
        writer.start_file(format!("f{file}"), options(0o644)).unwrap();
        for _ in 0..100 {
            writer.write_all(&piece).unwrap();
        }
    }
    let bomb = writer.finish().unwrap().into_inner();
    assert!(bomb.len() < 1 << 20, "{}", bomb.len());
    let error = write_layer(&bomb, std::io::sink()).unwrap_err();
    assert!(error.contains("Unzipped size must be smaller than 262144000 bytes"), "{error}");
}

#[test]
fn what_says_that_it_is_small_is_measured() {
    let mut made = package(&[("a", &[7; 5000])]);
    // The size in the central directory: its header begins with PK\x01\x02, and has the size after 24 bytes.
    let at = made.windows(4).position(|bytes| bytes == b"PK\x01\x02").unwrap();
    made[at + 24..at + 28].copy_from_slice(&1_u32.to_le_bytes());
    if let Ok(layer) = layer(&made) {
        assert!(entries(&layer).iter().all(|(_, _, text)| text.len() <= 5000));
    }
}

proptest! {
    #[test]
    fn any_bytes_are_a_package_or_none(at in 0_usize..400, byte: u8, cut in 0_usize..400) {
        let mut made = package(&[("app.py", b"code"), ("lib/x.py", b"more code more code more code")]);
        let length = made.len();
        made[at % length] = byte;
        let _ = layer(&made);
        made.truncate(length - cut % length);
        let _ = layer(&made);
    }
}
