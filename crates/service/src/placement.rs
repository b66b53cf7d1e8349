//! Where new sandboxes go: one worker, which is this machine.

use std::path::PathBuf;
use std::process::Stdio;

use snowmelt_sandbox::AgentConfig;
use tokio::io::AsyncWriteExt as _;
use tokio::process::{Child, Command};

use crate::Place;
use crate::host::{HostConfig, OutgoingNetwork};
use crate::model::Version;

/// How long a sandbox may take to begin, as in Lambda. It is tried again as a part of the invocation, under the function's own timeout.
const INIT_LIMIT_MS: u64 = 10_000;
/// Memory that makes a whole core, as in Lambda, in MB.
const MEMORY_OF_A_CORE: f64 = 1769.0;

/// This machine.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) program: PathBuf,
    /// Where hosts find the service.
    pub(crate) socket: PathBuf,
    pub(crate) agent: AgentConfig,
    pub(crate) state: PathBuf,
    pub(crate) place: Place,
    pub(crate) outgoing: OutgoingNetwork,
}

/// What is to run.
pub(crate) struct Wanted<'a> {
    pub(crate) sandbox: &'a str,
    pub(crate) tenant: &'a str,
    pub(crate) function: &'a str,
    /// `$LATEST` or a number.
    pub(crate) number: &'a str,
    pub(crate) version: &'a Version,
    /// It did not begin before: see [`HostConfig::is_last_try`].
    pub(crate) is_last_try: bool,
}

impl Machine {
    /// Starts the host of a sandbox.
    ///
    /// # Errors
    /// Those of the system.
    pub(crate) async fn start(&self, wanted: &Wanted<'_>) -> std::io::Result<Child> {
        let config = self.host_config(wanted);
        let mut command = Command::new(&self.program);
        let mut child = command.arg("function-host").stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
        if let Some(mut input) = child.stdin.take() {
            let mut line = serde_json::to_vec(&config)?;
            line.push(b'\n');
            // One that is gone already is noticed where it does not come.
            let _ = input.write_all(&line).await;
        }
        Ok(child)
    }

    fn host_config(&self, wanted: &Wanted<'_>) -> HostConfig {
        let settings = &wanted.version.settings;
        let mut agent = self.agent.clone();
        wanted.tenant.clone_into(&mut agent.tenant);
        // All that can be written is /tmp.
        agent.overlay_bytes = u64::from(settings.storage) << 20;
        HostConfig {
            sandbox: wanted.sandbox.to_owned(),
            socket: self.socket.clone(),
            agent,
            state: self.state.clone(),
            image: wanted.version.code.image.clone().unwrap_or_default(),
            entry_point: settings.image_config.entry_point.clone(),
            command: settings.image_config.command.clone(),
            working_directory: settings.image_config.working_directory.clone(),
            environment: self.environment(wanted),
            cpus: (f64::from(settings.memory) / MEMORY_OF_A_CORE).clamp(0.1, 6.0),
            version: wanted.number.to_owned(),
            memory_mb: settings.memory,
            function: wanted.function.to_owned(),
            handler: settings.image_config.command.first().cloned().unwrap_or_default(),
            account: self.place.account.clone(),
            init_limit_ms: if wanted.is_last_try { u64::from(settings.timeout) * 1000 } else { INIT_LIMIT_MS },
            is_last_try: wanted.is_last_try,
            outgoing: self.outgoing,
        }
    }

    /// What runtimes read: the function's own variables, and Lambda's over them.
    fn environment(&self, wanted: &Wanted<'_>) -> Vec<(String, String)> {
        let settings = &wanted.version.settings;
        let day = chrono::Utc::now().format("%Y/%m/%d");
        let stream = format!("{day}/[{}]{}", wanted.number, wanted.sandbox.replace('-', ""));
        let own = settings.environment.iter().map(|(name, value)| (name.clone(), value.clone()));
        let mut all: Vec<(String, String)> = own.collect();
        let mut set = |name: &str, value: &str| all.push((name.to_owned(), value.to_owned()));
        set("AWS_REGION", &self.place.region);
        set("AWS_DEFAULT_REGION", &self.place.region);
        set("AWS_EXECUTION_ENV", "AWS_Lambda_Image");
        set("AWS_XRAY_CONTEXT_MISSING", "LOG_ERROR");
        // SDKs do not begin without any. These are no secret of anybody's, and open nothing: see docs/lambda-runtime.md.
        for (name, value) in [
            ("AWS_ACCESS_KEY_ID", "ASIASNOWMELTFUNCTION"),
            ("AWS_SECRET_ACCESS_KEY", "none"),
            ("AWS_SESSION_TOKEN", "none"),
        ] {
            set(name, value);
        }
        set("AWS_LAMBDA_FUNCTION_NAME", wanted.function);
        set("AWS_LAMBDA_FUNCTION_VERSION", wanted.number);
        set("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", &settings.memory.to_string());
        set("AWS_LAMBDA_INITIALIZATION_TYPE", "on-demand");
        set("AWS_LAMBDA_LOG_GROUP_NAME", &format!("/aws/lambda/{}", wanted.function));
        set("AWS_LAMBDA_LOG_STREAM_NAME", &stream);
        if !settings.environment.contains_key("TZ") {
            set("TZ", ":UTC");
        }
        for (name, value) in [("LAMBDA_TASK_ROOT", "/var/task"), ("LAMBDA_RUNTIME_DIR", "/var/runtime")] {
            set(name, value);
        }
        // The command is the handler, as in Lambda's own base images.
        if let Some(handler) = settings.image_config.command.first() {
            set("_HANDLER", handler);
        }
        all
    }
}
