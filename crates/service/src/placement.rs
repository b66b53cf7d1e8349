//! Where new sandboxes go: one worker, which is this machine.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use snowmelt_sandbox::AgentConfig;
use tokio::io::AsyncWriteExt as _;
use tokio::process::{Child, Command};

use crate::Place;
use crate::host::{HostConfig, OutgoingNetwork};
use crate::model::Version;

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

/// What a sandbox is started for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StartFor {
    /// An invocation that waits.
    Invocation,
    /// The same, after a sandbox that did not begin: to begin takes of the invocation's time, and is not tried again.
    InvocationAgain,
    /// Being kept, whether or not anybody waits.
    Provisioned,
}

impl StartFor {
    /// How long it may take to begin, as in Lambda, where the function's timeout is so many seconds.
    pub(crate) fn init_limit(self, timeout: u32) -> Duration {
        match self {
            Self::Invocation => Duration::from_secs(10),
            Self::InvocationAgain => Duration::from_secs(timeout.into()),
            Self::Provisioned => Duration::from_mins(15),
        }
    }

    /// What runtimes and extensions are told of it.
    fn initialization_type(self) -> &'static str {
        if self == Self::Provisioned { "provisioned-concurrency" } else { "on-demand" }
    }
}

/// What is to run.
pub(crate) struct Wanted<'a> {
    pub(crate) sandbox: &'a str,
    pub(crate) tenant: &'a str,
    pub(crate) function: &'a str,
    /// `$LATEST` or a number.
    pub(crate) number: &'a str,
    pub(crate) version: &'a Version,
    pub(crate) start: StartFor,
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
        let command = wanted.version.command();
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
            entry_point: command.entry_point,
            command: command.command,
            working_directory: command.working_directory,
            environment: self.environment(wanted),
            cpus: (f64::from(settings.memory) / MEMORY_OF_A_CORE).clamp(0.1, 6.0),
            version: wanted.number.to_owned(),
            memory_mb: settings.memory,
            function: wanted.function.to_owned(),
            handler: settings.handler.as_ref().or(settings.image_config.command.first()).cloned().unwrap_or_default(),
            account: self.place.account.clone(),
            init_limit_ms: wanted.start.init_limit(settings.timeout).as_millis() as u64,
            is_last_try: wanted.start == StartFor::InvocationAgain,
            initialization_type: wanted.start.initialization_type().to_owned(),
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
        set("AWS_LAMBDA_INITIALIZATION_TYPE", wanted.start.initialization_type());
        set("AWS_LAMBDA_LOG_GROUP_NAME", &format!("/aws/lambda/{}", wanted.function));
        set("AWS_LAMBDA_LOG_STREAM_NAME", &stream);
        if !settings.environment.contains_key("TZ") {
            set("TZ", ":UTC");
        }
        for (name, value) in [("LAMBDA_TASK_ROOT", "/var/task"), ("LAMBDA_RUNTIME_DIR", "/var/runtime")] {
            set(name, value);
        }
        // The command is the handler, as in Lambda's own base images. Where neither is said, the image's own is, which the run knows.
        let handler = settings.handler.as_ref().or(settings.image_config.command.first());
        if let Some(handler) = handler {
            set("_HANDLER", handler);
        }
        if let Some(package) = wanted.version.package() {
            set("AWS_EXECUTION_ENV", &format!("AWS_Lambda_{}", package.runtime));
        }
        all
    }
}
