//! Damaged, missing and unreachable bytes: an error that names them, never wrong data, and a cure once they are back.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::proxy::Proxy;
use crate::stores::this_test;
use crate::world::{World, test_image, wait_until, walk};

/// Flips a byte in the middle of a file.
fn damage(path: &Path) {
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let middle = file.metadata().unwrap().len() / 2;
    let mut byte = [0];
    file.read_exact_at(&mut byte, middle).unwrap();
    byte[0] ^= 0x40;
    file.write_all_at(&byte, middle).unwrap();
}

fn make_writable(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

/// Reads thousands of small files, which fill chunks of their own.
const READ_MANY: &str = "cat /odd/many/* > /dev/null";

/// The stored chunks that starting a container does not fetch, not even ahead of need; [`READ_MANY`] needs some of them.
fn chunks_of_no_start(world: &World) -> Vec<PathBuf> {
    world.run(&[], &["true"]).success();
    // All of them are on the disk then.
    world.end_worker();
    let chunk_id = |path: &Path| path.file_name().unwrap().to_owned();
    let cache = world.path("cache");
    let fetched: Vec<_> = cached(&cache).iter().map(|path| chunk_id(path)).collect();
    std::fs::remove_dir_all(&cache).unwrap();
    let others: Vec<_> = world.chunk_files().into_iter().filter(|path| !fetched.contains(&chunk_id(path))).collect();
    assert!(!fetched.is_empty() && !others.is_empty(), "{} chunks are fetched, {} not", fetched.len(), others.len());
    others
}

/// Files in the cache that are named like a chunk.
fn cached(cache: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    walk(cache, &mut |path| {
        let name = path.file_name().unwrap().to_string_lossy();
        if name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            files.push(path.to_owned());
        }
    });
    files
}

/// Whether `text` names one of the chunks, by at least the beginning of its id.
fn names_one_of(text: &str, chunks: &[PathBuf]) -> bool {
    chunks.iter().any(|path| text.contains(&path.file_name().unwrap().to_str().unwrap()[..12]))
}

#[test]
fn a_damaged_chunk_in_the_store_is_an_io_error_and_is_named() {
    let world = World::with_small();
    let victims = chunks_of_no_start(&world);
    for victim in &victims {
        world.damage_stored(victim);
    }

    let read = world.run(&[], &["sh", "-c", &format!("echo whole; {READ_MANY}")]);
    assert_ne!(read.code, 0);
    assert_eq!(read.stdout(), "whole\n", "what is whole can be read");
    assert!(read.stderr.contains("I/O error"), "{}", read.stderr);
    assert!(names_one_of(&read.stderr, &victims) && read.stderr.contains("small"), "image and chunk: {}", read.stderr);
    let verified = world.snowmelt(["verify", "small"]).failure(1, &[]);
    assert!(names_one_of(&verified.stderr, &victims), "{}", verified.stderr);

    // Whole again at the origin: whole again for the next reader, nothing wrong was kept.
    for victim in &victims {
        world.damage_stored(victim);
    }
    world.run(&[], &["sh", "-c", READ_MANY]).success();
    world.snowmelt(["verify", "small"]).success();
}

#[test]
fn a_missing_chunk_is_an_io_error_and_is_named() {
    let world = World::with_small();
    let victims = chunks_of_no_start(&world);
    for victim in &victims {
        world.remove_stored(victim);
    }

    let read = world.run(&[], &["sh", "-c", READ_MANY]);
    assert_ne!(read.code, 0);
    assert!(names_one_of(&read.stderr, &victims) && read.stderr.contains("small"), "{}", read.stderr);
    let verified = world.snowmelt(["verify", "small"]).failure(1, &[]);
    assert!(names_one_of(&verified.stderr, &victims), "{}", verified.stderr);

    // Publishing the image again is the operator's cure.
    world.snowmelt(["publish", &test_image("small"), "small"]).success();
    let stored = world.chunk_files();
    assert!(victims.iter().all(|victim| stored.contains(victim)), "the chunks are stored again");
    world.run(&[], &["sh", "-c", READ_MANY]).success();
}

#[test]
fn a_damaged_cache_heals_from_the_store() {
    let world = World::with_small().without_zone(this_test!());
    let expected = world.run(&[], &["cat", "/data/pattern"]).success().stdout;
    world.end_worker();
    let mut damaged = 0;
    walk(&world.path("cache"), &mut |path| {
        if path.metadata().unwrap().len() > 4096 {
            make_writable(path);
            damage(path);
            damaged += 1;
        }
    });
    assert!(damaged > 0, "chunks are kept in the cache");
    assert!(world.run(&[], &["cat", "/data/pattern"]).success().stdout == expected);
    // And it is cured: with the store's chunks gone, the cache has what it takes.
    for chunk in world.chunk_files() {
        world.remove_stored(&chunk);
    }
    assert!(world.run(&[], &["cat", "/data/pattern"]).success().stdout == expected);
}

#[test]
fn publishing_again_with_repair_is_the_cure_for_damage() {
    let world = World::with_small();
    let victim = world.chunk_files().remove(0);
    world.damage_stored(&victim);
    let verified = world.snowmelt(["verify", "small"]).failure(1, &[]);
    assert!(verified.stdout().contains("snowmelt publish --repair"), "{}", verified.stdout());
    assert!(!verified.stderr.contains('\u{1b}'), "no colours in a pipe: {}", verified.stderr);
    let again = world.json(&["publish", &test_image("small"), "small"]);
    assert_eq!(again["repaired_chunks"], 0, "{again}");
    world.snowmelt(["verify", "small"]).failure(1, &[]);
    let repaired = world.json(&["publish", "--repair", &test_image("small"), "small"]);
    assert_eq!((&repaired["repaired_chunks"], &repaired["new_chunks"]), (&1.into(), &0.into()), "{repaired}");
    world.snowmelt(["verify", "small"]).success();
}

#[test]
fn a_damaged_manifest_is_refused() {
    let world = World::with_small();
    let stored = world.objects("store").list();
    let manifests: Vec<_> = stored.iter().filter(|(path, _)| path.contains("/manifests/")).collect();
    for (path, _) in &manifests {
        world.damage_stored(path.as_ref());
    }
    assert!(!manifests.is_empty());
    world.run(&[], &["true"]).failure(125, &["small"]);
}

/// Serves a folder by HTTP; gives the server and `127.0.0.1:PORT`.
pub fn serve(folder: &Path) -> (std::process::Child, String) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    drop(listener);
    let server = std::process::Command::new("python3")
        .args(["-m", "http.server", "--bind", "127.0.0.1", "--protocol", "HTTP/1.1", "--directory"])
        .arg(folder)
        .arg(&port)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let address = format!("127.0.0.1:{port}");
    wait_until("the server answers", || std::net::TcpStream::connect(&address).is_ok());
    (server, address)
}

/// A world's store as it is reached by the network, behind a proxy that can fall silent.
pub struct Served {
    server: Option<std::process::Child>,
    pub proxy: Proxy,
    /// What messages call the store.
    url: String,
    options: Vec<String>,
}

impl Served {
    /// How commands are told to go there.
    pub fn options(&self) -> Vec<&str> {
        self.options.iter().map(String::as_str).collect()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if let Some(server) = &mut self.server {
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}

/// A folder is served as it is; a bucket has its server.
pub fn serve_store(world: &World) -> Served {
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    if let Some(servers) = world.servers() {
        let proxy = Proxy::cutting(servers.s3.strip_prefix("http://").unwrap(), 0, 0);
        let options = words(&["--s3-endpoint", &format!("http://{}", proxy.address)]);
        return Served { server: None, proxy, url: world.store_url("store"), options };
    }
    let (server, address) = serve(&world.path("store"));
    let proxy = Proxy::cutting(&address, 0, 0);
    let url = format!("http://{}/", proxy.address);
    Served { server: Some(server), options: words(&["--store", &url, "--allow-http"]), proxy, url }
}

#[test]
fn a_store_that_falls_silent_is_waited_for_until_the_deadline() {
    let world = World::with_small();
    let served = serve_store(&world);
    let (proxy, options) = (&served.proxy, served.options());
    let remote = |image: &str, command: &[&str]| {
        let arguments = [&options[..], &["run", image, "--"], command].concat();
        world.command(arguments).spawn().unwrap()
    };
    let greeting = crate::world::finish(remote("small", &["cat", "/etc/greeting"])).success();
    assert_eq!(greeting.stdout(), "hello from snowmelt\n");

    // Silent for a while: the reader waits and then gets the right bytes.
    world.forget_chunks();
    let mut child = remote("small", &["sh", "-c", "echo ready; sleep 0.3; cat /odd/many/* | md5sum"]);
    let mut output = crate::world::read_until(&mut child, "ready");
    proxy.set_silent(true);
    std::thread::sleep(std::time::Duration::from_millis(1500));
    proxy.set_silent(false);
    let mut rest = String::new();
    std::io::Read::read_to_string(&mut output, &mut rest).unwrap();
    assert_eq!(crate::world::wait(&mut child), 0);
    let direct = world.run(&[], &["sh", "-c", "cat /odd/many/* | md5sum"]).success().stdout();
    assert_eq!(rest, direct);

    // Silent for longer than the deadline: an error, soon after it, and no wrong byte. Of these chunks a zone has none.
    world.snowmelt(["publish", &test_image("small"), "own", "--share", "tenant"]).success();
    let each = "for file in /odd/many/entry-00*; do cat $file || exit 1; done";
    std::fs::write(world.path("config.toml"), "deadline_ms = 1000\n").unwrap();
    let mut child = remote("own", &["sh", "-c", &format!("echo ready; sleep 0.3; {each}")]);
    let mut output = crate::world::read_until(&mut child, "ready");
    proxy.set_silent(true);
    let mut rest = Vec::new();
    std::io::Read::read_to_end(&mut output, &mut rest).unwrap();
    assert_ne!(crate::world::wait(&mut child), 0);
    let expected = world.run(&[], &["sh", "-c", each]).success().stdout;
    assert!(rest.len() < expected.len() && expected.starts_with(&rest), "{} bytes, none of them wrong", rest.len());
    proxy.set_silent(false);
}

/// Opening an image keeps to the deadline too, and a sandbox that is to fail does so soon.
#[test]
fn a_silent_store_does_not_hold_up_a_start_for_longer_than_configured() {
    let world = World::with_small();
    let served = serve_store(&world);
    let (proxy, options) = (&served.proxy, served.options());
    proxy.set_silent(true);
    for settings in [
        &["--deadline-ms", "1000"][..],
        &["--on-unavailable", "fail"],
        &["--on-unavailable", "fail", "--deadline-ms", "500"],
    ] {
        let started = std::time::Instant::now();
        let arguments = [&options[..], settings, &["run", "small", "--", "true"]].concat();
        world.snowmelt(arguments).failure(125, &["small", &served.url]);
        // Without the settings it would be two minutes.
        assert!(started.elapsed() < std::time::Duration::from_secs(20), "{settings:?}: {:?}", started.elapsed());
    }
    proxy.set_silent(false);
    drop(served);
    world.assert_nothing_left();
}

/// A stall is logged with image, chunk and tier.
#[test]
fn a_stall_is_told_to_the_operator() {
    let world = World::with_small();
    let served = serve_store(&world);
    let (proxy, options) = (&served.proxy, served.options());
    let script = format!("echo ready; read line; {READ_MANY}");
    let settings = [&options[..], &["--load", "on-demand"]].concat();
    let mut child = world
        .command([&settings[..], &["run", "-i", "small", "sh", "-c", &script]].concat())
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let _output = crate::world::read_until(&mut child, "ready");
    proxy.set_silent(true);
    drop(child.stdin.take());
    let mut messages = std::io::BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("stalls") {
        line.clear();
        assert!(std::io::BufRead::read_line(&mut messages, &mut line).unwrap() > 0, "no message about the stall");
    }
    proxy.set_silent(false);
    assert!(line.contains("small:latest") && line.contains("chunk=") && line.contains("tier=origin"), "{line}");
    let mut rest = String::new();
    std::io::Read::read_to_string(&mut messages, &mut rest).unwrap();
    assert_eq!(crate::world::wait(&mut child), 0, "{rest}");
}

/// Killed while the kernel waits for the device that it serves, an agent once waited for itself for ever: its descriptors
/// stayed open, and with it every `sync` of the machine hung.
#[test]
fn an_agent_killed_while_it_mounts_does_not_wait_for_itself() {
    let world = World::with_small();
    let served = serve_store(&world);
    let (proxy, options) = (&served.proxy, served.options());
    // Enough for name and manifest, too little for the first chunk.
    proxy.set_silent_after(100 << 10);
    let mut child = world.command([&options[..], &["run", "small", "--", "true"]].concat()).spawn().unwrap();
    let agent = || -> Option<i32> {
        let sandbox =
            std::fs::read_dir(world.path("state")).ok()?.flatten().find(|entry| entry.file_name().len() == 12)?;
        let record = std::fs::read_to_string(sandbox.path().join("record.json")).ok()?;
        let record: serde_json::Value = serde_json::from_str(&record).ok()?;
        record["agent"]["pid"].as_i64()?.try_into().ok()
    };
    wait_until("the agent waits for the store", || {
        proxy.is_silent() && agent().is_some() && !world.loop_devices().is_empty()
    });
    let pid = nix::unistd::Pid::from_raw(agent().unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    let mut message = String::new();
    std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut message).unwrap();
    assert_eq!(crate::world::wait(&mut child), 125, "{message}");
    assert!(message.contains("ended unexpectedly"), "{message}");
    drop(served);
    world.assert_nothing_left();
    crate::world::tool("timeout", &["60", "sync"]);
}
