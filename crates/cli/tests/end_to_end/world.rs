//! One test's surroundings: directories, the binary with its environment, and what must be cleared away afterwards.

use std::ffi::{OsStr, OsString};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::machine::Machine;
use crate::stores::{self, Objects, Servers};

/// How long anything may take before a test gives up on it. Generous: the machine may be busy.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// Root of the source tree.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// `oci:` source of a test image, which is built if it is not there yet.
pub fn test_image(name: &str) -> String {
    static BUILT: OnceLock<std::sync::Mutex<std::collections::BTreeSet<String>>> = OnceLock::new();
    let mut built = BUILT.get_or_init(std::sync::Mutex::default).lock().unwrap();
    if !built.contains(name) {
        let status = Command::new(repository().join("scripts/test-images"))
            .arg(name)
            .env("SNOWMELT_TEST_CACHE", test_cache())
            .stdout(Stdio::null())
            .status()
            .unwrap();
        assert!(status.success(), "scripts/test-images {name} failed; see its messages above");
        built.insert(name.to_owned());
    }
    format!("oci:{}:{name}", test_cache().join("oci").display())
}

/// Where test images are kept between runs.
pub fn test_cache() -> PathBuf {
    repository().join(std::env::var_os("SNOWMELT_TEST_CACHE").unwrap_or_else(|| "target/test-images".into()))
}

/// What a command left behind.
#[derive(Debug)]
pub struct Finished {
    /// Exit code; 128 + N after signal N.
    pub code: i32,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl Finished {
    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Fails the test unless the command succeeded.
    #[track_caller]
    pub fn success(self) -> Self {
        assert_eq!(self.code, 0, "stdout: {}\nstderr: {}", self.stdout(), self.stderr);
        self
    }

    /// Fails the test unless the command failed with `code` and a message that has all of `words`.
    #[track_caller]
    pub fn failure(self, code: i32, words: &[&str]) -> Self {
        assert_eq!(self.code, code, "stdout: {}\nstderr: {}", self.stdout(), self.stderr);
        for word in words {
            assert!(self.stderr.contains(word), "no `{word}` in the message: {}", self.stderr);
        }
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
        self
    }
}

/// Directories and environment of one test.
pub struct World {
    directory: tempfile::TempDir,
    variables: Vec<(String, String)>,
    /// Where the stores are buckets.
    servers: Option<&'static Servers>,
    pub machine: Mutex<Machine>,
}

impl World {
    pub fn new() -> Self {
        Self::with_stores_on(stores::is_s3().then(|| {
            stores::servers().expect("SNOWMELT_TEST_STORE takes servers: scripts/test-servers run -- cargo test …")
        }))
    }

    /// For tests of object storage alone, wherever the stores of the others are.
    pub fn on_s3() -> Self {
        let servers = stores::servers().expect("it takes servers: scripts/test-servers run -- cargo test …");
        Self::with_stores_on(Some(servers))
    }

    /// For tests of keys in files, wherever the stores of the others are.
    pub fn on_files() -> Self {
        Self::with_stores_on(None)
    }

    fn with_stores_on(servers: Option<&'static Servers>) -> Self {
        assert!(
            nix::unistd::geteuid().is_root(),
            "end-to-end tests mount file systems and start containers: run them as root"
        );
        let directory = tempfile::Builder::new().prefix("snowmelt-test-").tempdir().unwrap();
        let mut variables = servers.map(Servers::variables).unwrap_or_default();
        let mut machine = Machine::Without;
        if let Some(nodes) = stores::cache_nodes() {
            variables.push(("SNOWMELT_CACHE_NODES".into(), nodes));
            machine = Machine::Due;
        }
        let world = Self { directory, variables, servers, machine: Mutex::new(machine) };
        std::fs::write(world.path("config.toml"), "").unwrap();
        world
    }

    /// A world in which the image `small` is published under that name.
    pub fn with_small() -> Self {
        let world = Self::new();
        world.snowmelt(["publish", &test_image("small"), "small"]).success();
        world
    }

    /// The same world without a zone: every chunk that is not on the machine comes from the store. `test` is [`this_test`].
    ///
    /// [`this_test`]: crate::stores::this_test
    pub fn without_zone(mut self, test: &str) -> Self {
        stores::assert_is_partly_on_cluster(test);
        self.variables.retain(|(name, _)| name != "SNOWMELT_CACHE_NODES");
        self
    }

    /// Sets a variable for every later command.
    pub fn set(&mut self, name: &str, value: impl Into<String>) {
        self.variables.push((name.to_owned(), value.into()));
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// The URL of a store of this world; `store` is the one that commands use when nothing else is said.
    pub fn store_url(&self, name: &str) -> String {
        match self.servers {
            Some(servers) => format!("s3://{}/{}", servers.bucket, self.prefix(name)),
            None => self.text(name),
        }
    }

    /// The servers of its stores, where those are buckets.
    pub fn servers(&self) -> Option<&'static Servers> {
        self.servers
    }

    fn prefix(&self, name: &str) -> String {
        format!("{}/{name}", self.directory.path().file_name().unwrap().to_str().unwrap())
    }

    /// What is in the store of that name.
    pub fn objects(&self, name: &str) -> Objects {
        match self.servers {
            Some(servers) => Objects::of_bucket(servers, &self.prefix(name)),
            None => Objects::of_folder(&self.path(name)),
        }
    }

    /// The binary, in this world's environment.
    #[track_caller]
    pub fn command<I: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = I>) -> Command {
        self.command_with(&[], arguments)
    }

    /// The binary, in this world's environment with some changes: `None` takes a variable away. A worker has them too.
    #[track_caller]
    pub fn command_with<I: AsRef<OsStr>>(
        &self,
        changes: &[(&str, Option<&str>)],
        arguments: impl IntoIterator<Item = I>,
    ) -> Command {
        let arguments: Vec<OsString> = arguments.into_iter().map(|argument| argument.as_ref().to_owned()).collect();
        self.prepare_for(changes, &arguments);
        let mut command = Command::new(env!("CARGO_BIN_EXE_snowmelt"));
        command
            .args(arguments)
            .env("SNOWMELT_CONFIG", self.path("config.toml"))
            .env("SNOWMELT_STORE", self.store_url("store"))
            .env("SNOWMELT_STATE_DIR", self.path("state"))
            .env("SNOWMELT_CACHE_DIR", self.path("cache"))
            .env("SNOWMELT_KEYS_DIR", self.path("keys"))
            .env("HOME", self.path("home"))
            .env("DOCKER_CONFIG", self.path("docker"))
            .env_remove("SNOWMELT_TENANT")
            .env_remove("RUST_BACKTRACE")
            .env_remove("AWS_PROFILE")
            .current_dir(self.directory.path())
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        for (name, value) in changes {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command
    }

    /// Runs the binary to its end.
    pub fn snowmelt<I: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = I>) -> Finished {
        finish(self.command(arguments).spawn().unwrap())
    }

    /// Runs the binary with bytes on standard input.
    pub fn snowmelt_with_input<I: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = I>,
        input: &[u8],
    ) -> Finished {
        let mut child = self.command(arguments).stdin(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_vec();
        let writer = std::thread::spawn(move || {
            // A command that does not read its input closes the pipe.
            let _ = stdin.write_all(&input);
        });
        let finished = finish(child);
        writer.join().unwrap();
        finished
    }

    /// Runs `command` in a container of `small`.
    pub fn run<'a>(&self, options: &[&'a str], command: &[&'a str]) -> Finished {
        let mut arguments = vec!["run", "small"];
        arguments.extend(options);
        arguments.push("--");
        arguments.extend(command);
        self.snowmelt(arguments)
    }

    /// Runs the binary with `--json` and reads what it prints.
    #[track_caller]
    pub fn json(&self, arguments: &[&str]) -> Value {
        let finished = self.snowmelt(std::iter::once(&"--json").chain(arguments)).success();
        serde_json::from_slice(&finished.stdout)
            .unwrap_or_else(|error| panic!("not JSON ({error}): {}", finished.stdout()))
    }

    /// Mounts `image` on a new directory, which is returned.
    #[track_caller]
    pub fn mount(&self, image: &str, options: &[&str]) -> PathBuf {
        let directory = self.path(&format!("mount-of-{image}"));
        std::fs::create_dir_all(&directory).unwrap();
        let mut arguments = vec!["mount", image, directory.to_str().unwrap()];
        arguments.extend(options);
        self.snowmelt(arguments).success();
        assert!(is_mount_point(&directory), "{} is not mounted", directory.display());
        directory
    }

    #[track_caller]
    pub fn unmount(&self, directory: &Path) {
        self.snowmelt([OsStr::new("unmount"), directory.as_os_str()]).success();
        assert!(!is_mount_point(directory), "{} is still mounted", directory.display());
    }

    /// Every chunk of the store: where it lies, as a file where the store is a folder.
    pub fn chunk_files(&self) -> Vec<PathBuf> {
        let root = if self.servers.is_some() { PathBuf::new() } else { self.path("store") };
        let all = self.objects("store").list();
        all.iter().filter(|(path, _)| path.contains("/chunks/")).map(|(path, _)| root.join(path)).collect()
    }

    /// Flips a bit in the middle of something in the store, which [`World::chunk_files`] gave or a path in it names.
    pub fn damage_stored(&self, path: &Path) {
        let (objects, path) = (self.objects("store"), self.path_in_store(path));
        let mut bytes = objects.read(&path);
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0x40;
        objects.write(&path, bytes);
    }

    pub fn remove_stored(&self, path: &Path) {
        self.objects("store").remove(&self.path_in_store(path));
    }

    fn path_in_store(&self, path: &Path) -> String {
        path.strip_prefix(self.path("store")).unwrap_or(path).to_str().unwrap().to_owned()
    }

    /// Processes that were started in this world and still run: their command line or environment names its directory.
    pub fn processes(&self) -> Vec<i32> {
        let marker = self.directory.path().to_str().unwrap().as_bytes().to_vec();
        let own = std::process::id().cast_signed();
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
            let names_it =
                |file: &str| std::fs::read(entry.path().join(file)).is_ok_and(|bytes| contains(&bytes, &marker));
            if pid != own && (names_it("cmdline") || names_it("environ")) && !is_zombie(pid) {
                found.push(pid);
            }
        }
        found
    }

    /// Mount points below this world's directory, the innermost first.
    pub fn mounts(&self) -> Vec<PathBuf> {
        let mut mounts: Vec<PathBuf> =
            mount_points().into_iter().filter(|path| path.starts_with(self.directory.path())).collect();
        mounts.sort();
        mounts.reverse();
        mounts
    }

    /// Loop devices whose file is in this world's directory.
    pub fn loop_devices(&self) -> Vec<String> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/sys/block").unwrap().flatten() {
            let Ok(file) = std::fs::read_to_string(entry.path().join("loop/backing_file")) else { continue };
            if file.starts_with(self.directory.path().to_str().unwrap()) {
                found.push(entry.file_name().to_string_lossy().into_owned());
            }
        }
        found
    }

    /// Fails the test if a mount, a loop device or a process of this world is left.
    #[track_caller]
    pub fn assert_nothing_left(&self) {
        // The kernel takes a loop device down after its last user is gone, not at once.
        wait_until("mounts and loop devices are gone", || self.mounts().is_empty() && self.loop_devices().is_empty());
        self.wait_for_the_last_process();
    }

    /// Fails the test if an image is in the store.
    #[track_caller]
    pub fn assert_no_images(&self) {
        let images = self.json(&["images"]);
        assert_eq!(images.as_array().map(Vec::len), Some(0), "{images}");
    }

    /// Waits until every sandbox has ended, and ends the worker that the world has started.
    #[track_caller]
    pub fn wait_for_the_last_process(&self) {
        let worker = self.worker_process();
        wait_until("processes are gone", || self.processes().iter().all(|pid| Some(*pid) == worker));
        self.end_worker();
        assert!(self.processes().is_empty(), "the worker leaves processes");
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // Else it would replace what is killed here.
        self.kill_worker();
        for mount in self.mounts() {
            let _ = nix::mount::umount2(&mount, nix::mount::MntFlags::MNT_DETACH);
        }
        for pid in self.processes() {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
    }
}

/// Waits for a child, reading both of its streams meanwhile; one that hangs is killed and fails the test.
pub fn finish(mut child: Child) -> Finished {
    let stdout = child.stdout.take().map(collect);
    let stderr = child.stderr.take().map(collect);
    let status = wait(&mut child);
    Finished {
        code: status,
        stdout: stdout.map(|thread| thread.join().unwrap()).unwrap_or_default(),
        stderr: String::from_utf8_lossy(&stderr.map(|thread| thread.join().unwrap()).unwrap_or_default()).into_owned(),
    }
}

/// Exit code of a child, 128 + N after signal N.
pub fn wait(child: &mut Child) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    let deadline = Instant::now() + 3 * PATIENCE;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code().unwrap_or_else(|| 128 + status.signal().unwrap());
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            panic!("process {} hangs", child.id());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn collect(mut stream: impl Read + Send + 'static) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes);
        bytes
    })
}

/// Reads a child's standard output up to and with the first line that has `text`; the reader goes on from there.
#[track_caller]
pub fn read_until(child: &mut Child, text: &str) -> BufReader<std::process::ChildStdout> {
    let mut reader = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    loop {
        line.clear();
        assert!(reader.read_line(&mut line).unwrap() > 0, "output ended before `{text}`");
        if line.contains(text) {
            return reader;
        }
    }
}

/// Polls until `condition` holds: for states that nothing announces.
#[track_caller]
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub fn is_mount_point(directory: &Path) -> bool {
    mount_points().iter().any(|path| path == directory)
}

fn mount_points() -> Vec<PathBuf> {
    std::fs::read_to_string("/proc/self/mountinfo")
        .unwrap()
        .lines()
        .filter_map(|line| line.split(' ').nth(4).map(|path| PathBuf::from(path.replace("\\040", " "))))
        .collect()
}

/// Whether a process exists and has not ended.
pub fn is_running(pid: i32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists() && !is_zombie(pid)
}

fn is_zombie(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z')))
}

fn contains(bytes: &[u8], needle: &[u8]) -> bool {
    bytes.windows(needle.len()).any(|window| window == needle)
}

/// Calls `visit` for every regular file below `directory`.
pub fn walk(directory: &Path, visit: &mut impl FnMut(&Path)) {
    let Ok(entries) = std::fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        if entry.file_type().unwrap().is_dir() {
            walk(&entry.path(), visit);
        } else {
            visit(&entry.path());
        }
    }
}

/// Runs another program that must succeed.
#[track_caller]
pub fn tool(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("cannot start {program} ({error}): run scripts/setup"));
    assert!(
        output.status.success(),
        "{program} {arguments:?} failed: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}
