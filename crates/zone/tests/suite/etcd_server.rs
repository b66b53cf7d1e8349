//! A real etcd on free ports.
#![allow(dead_code, reason = "each of the tests that share it uses another part")]

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// A member of etcd that is alone, from Debian's package etcd-server.
pub(crate) struct EtcdServer {
    folder: TempDir,
    ports: [u16; 2],
    child: Child,
}

impl EtcdServer {
    pub(crate) fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        // Both at once, so that they differ.
        let held = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let ports = held.map(|listener| listener.local_addr().unwrap().port());
        let child = Self::spawn(folder.path(), ports);
        let server = Self { folder, ports, child };
        until_ready("etcd answers", || server.is_ready());
        server
    }

    fn spawn(folder: &Path, [clients, peers]: [u16; 2]) -> Child {
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        Command::new("etcd")
            .args(["--name", "only", "--data-dir"])
            .arg(folder)
            .args(["--listen-client-urls", &url(clients), "--advertise-client-urls", &url(clients)])
            .args(["--listen-peer-urls", &url(peers), "--initial-advertise-peer-urls", &url(peers)])
            .args(["--initial-cluster", &format!("only={}", url(peers))])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("etcd is not installed: run scripts/setup")
    }

    fn is_ready(&self) -> bool {
        let health = Command::new("curl")
            .args([
                "--silent",
                "--noproxy",
                "*",
                "--max-time",
                "1",
                &format!("http://127.0.0.1:{}/health", self.ports[0]),
            ])
            .output()
            .unwrap();
        String::from_utf8_lossy(&health.stdout).contains("true")
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub(crate) fn start_again(&mut self) {
        self.child = Self::spawn(self.folder.path(), self.ports);
        until_ready("etcd answers again", || self.is_ready());
    }

    /// A member that nobody answers for comes before it.
    pub(crate) fn url(&self) -> String {
        format!("etcd://127.0.0.1:1,127.0.0.1:{}/snowmelt/zone-a", self.ports[0])
    }

    /// Puts a key by the tool of etcd's own gateway.
    pub(crate) fn put(&self, key: &str, value: &str) {
        use base64::Engine as _;
        let encode = |text: &str| base64::prelude::BASE64_STANDARD.encode(text);
        let body = format!(r#"{{"key": "{}", "value": "{}"}}"#, encode(key), encode(value));
        let url = format!("http://127.0.0.1:{}/v3/kv/put", self.ports[0]);
        let status = Command::new("curl")
            .args(["--silent", "--fail", "--noproxy", "*", "--data", &body, &url])
            .stdout(Stdio::null())
            .status();
        assert!(status.unwrap().success());
    }
}

impl Drop for EtcdServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// It starts in a second or so.
fn until_ready(what: &str, is_so: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < Duration::from_mins(1), "still not: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
