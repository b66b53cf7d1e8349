//! A real browser: Chromium without a window, driven by its driver as the WebDriver standard says (JSON over HTTP).

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::world::{PATIENCE, World, wait_until};

/// Lines of the driver's until it says where it listens.
const MOST_LINES: usize = 20;

pub(super) struct Browser {
    driver: Child,
    address: String,
    session: String,
}

impl Browser {
    /// Starts one with nothing of another's in it, whose window has this size.
    #[track_caller]
    pub(super) fn start(world: &World, (width, height): (u32, u32)) -> Self {
        let mut driver = Command::new("chromedriver")
            .arg("--port=0")
            .env("HOME", world.path("home"))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("scripts/setup installs chromium and chromium-driver");
        let mut lines = BufReader::new(driver.stdout.take().unwrap()).lines().take(MOST_LINES);
        let port = lines.find_map(|line| {
            let line = line.unwrap();
            let (_, port) = line.split_once("started successfully on port ")?;
            Some(port.trim_end_matches('.').to_owned())
        });
        // It must not end because nobody reads what it says.
        std::thread::spawn(move || lines.for_each(drop));
        let mut browser = Self {
            driver,
            address: format!("127.0.0.1:{}", port.expect("the driver says its port")),
            session: String::new(),
        };
        let profile = format!("--user-data-dir={}", world.text("browser"));
        let size = format!("--window-size={width},{height}");
        let mut arguments = vec![profile.as_str(), size.as_str()];
        arguments.extend([
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--no-proxy-server",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
        ]);
        let wanted = json!({ "capabilities": { "alwaysMatch": {
            "browserName": "chrome",
            "goog:chromeOptions": { "args": arguments },
            "goog:loggingPrefs": { "browser": "ALL" },
        } } });
        let made = browser.call("POST", "/session", Some(&wanted));
        made["sessionId"].as_str().unwrap().clone_into(&mut browser.session);
        let patience = json!({ "script": 30_000, "pageLoad": 30_000 });
        browser.ask("POST", "/timeouts", Some(&patience));
        browser
    }

    fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Value {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE + Duration::from_secs(30))).unwrap();
        let body = body.map(Value::to_string).unwrap_or_default();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
            self.address,
            body.len()
        )
        .unwrap();
        let mut reader = BufReader::new(stream);
        let mut length = None;
        let mut line = String::new();
        while reader.read_line(&mut line).unwrap() > 2 {
            if let Some((name, value)) = line.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = value.trim().parse().ok();
            }
            line.clear();
        }
        let mut answer = vec![0; length.expect("the driver says how long its answer is")];
        reader.read_exact(&mut answer).unwrap();
        let answer: Value = serde_json::from_slice(&answer).unwrap();
        assert!(answer["value"].get("error").is_none(), "{path} {body}: {answer}");
        answer["value"].clone()
    }

    #[track_caller]
    fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Value {
        self.call(method, &format!("/session/{}{path}", self.session), body)
    }

    pub(super) fn open(&self, url: &str) {
        self.ask("POST", "/url", Some(&json!({ "url": url })));
    }

    /// What a script of the page's returns; where that is a promise, what comes of it.
    #[track_caller]
    pub(super) fn run(&self, script: &str, arguments: &Value) -> Value {
        self.ask("POST", "/execute/sync", Some(&json!({ "script": script, "args": arguments })))
    }

    /// The text that a person sees.
    #[track_caller]
    pub(super) fn text(&self) -> String {
        self.run("return document.body.innerText", &json!([])).as_str().unwrap().to_owned()
    }

    #[track_caller]
    pub(super) fn wait_for(&self, words: &str) {
        let mut text = String::new();
        let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            wait_until(words, || {
                text = self.text();
                text.contains(words)
            });
        }));
        assert!(found.is_ok(), "the page never says {words:?}:\n{text}");
    }

    /// What the browser complained about since it was asked last.
    pub(super) fn complaints(&self) -> Vec<String> {
        let entries = self.ask("POST", "/se/log", Some(&json!({ "type": "browser" })));
        let entries = entries.as_array().unwrap().iter().filter(|entry| entry["level"] == "SEVERE");
        entries.map(|entry| entry["message"].as_str().unwrap().to_owned()).collect()
    }

    /// A picture of the whole page, for people: kept where SNOWMELT_TEST_PICTURES says, if it does.
    pub(super) fn picture(&self, name: &str) {
        use base64::Engine as _;
        let Some(folder) = std::env::var_os("SNOWMELT_TEST_PICTURES") else { return };
        let shot = json!({ "cmd": "Page.captureScreenshot", "params": { "captureBeyondViewport": true } });
        let taken = self.ask("POST", "/goog/cdp/execute", Some(&shot));
        let bytes = base64::engine::general_purpose::STANDARD.decode(taken["data"].as_str().unwrap()).unwrap();
        std::fs::write(std::path::Path::new(&folder).join(name), bytes).unwrap();
    }

    /// Says what it is to look like: dark or light, and how wide the screen is.
    pub(super) fn emulate(&self, scheme: &str, width: u32) {
        let media = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        self.ask("POST", "/goog/cdp/execute", Some(&json!({ "cmd": "Emulation.setEmulatedMedia", "params": media })));
        let screen = json!({ "width": width, "height": 1200, "deviceScaleFactor": 1, "mobile": width < 600 });
        self.ask(
            "POST",
            "/goog/cdp/execute",
            Some(&json!({ "cmd": "Emulation.setDeviceMetricsOverride", "params": screen })),
        );
    }

    /// Ends it and all that it started.
    pub(super) fn stop(mut self) {
        self.ask("DELETE", "", None);
        self.session.clear();
        self.driver.kill().unwrap();
        self.driver.wait().unwrap();
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        if !self.session.is_empty() && !std::thread::panicking() {
            self.ask("DELETE", "", None);
        }
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}
