//! `fn` and `top`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Subcommand;

use crate::units::Age;

/// Make, invoke and look after functions.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Signed with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY where those are set; a service without access keys takes anybody.\n\n\
                  Examples:\n  \
                  snowmelt fn create hello localhost:5000/hello:1\n  \
                  snowmelt fn invoke hello '{\"name\": \"you\"}'\n  \
                  snowmelt fn logs -f hello"
)]
pub(crate) struct FunctionsArgs {
    #[command(flatten)]
    pub(crate) endpoint: EndpointArgs,
    #[command(subcommand)]
    pub(crate) action: FunctionsAction,
}

/// Which service.
#[derive(clap::Args, Debug)]
pub(crate) struct EndpointArgs {
    /// Where the service is: what `snowmelt serve` prints.
    #[arg(long, global = true, value_name = "URL", env = "SNOWMELT_ENDPOINT", default_value = "http://127.0.0.1:9001")]
    pub(crate) endpoint: String,
}

#[derive(Subcommand, Debug)]
pub(crate) enum FunctionsAction {
    Create(CreateArgs),
    Update(UpdateArgs),
    Invoke(InvokeArgs),
    Logs(LogsArgs),
    /// List functions, what they are at and how often they started.
    Ls,
    /// Delete functions, with their versions, aliases and logs.
    Rm {
        /// Their names.
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
}

/// Make a function of an image, and wait until it can be invoked.
#[derive(clap::Args, Debug)]
pub(crate) struct CreateArgs {
    /// What it is called.
    pub(crate) name: String,
    /// Its code: registry.example/name:tag, or with `serve --allow-local-images` oci:DIR:TAG and the like.
    pub(crate) image: String,
    /// The role that clients are told it has.
    #[arg(long, value_name = "ARN", default_value = "arn:aws:iam::000000000000:role/any", hide_short_help = true)]
    pub(crate) role: String,
    #[command(flatten)]
    pub(crate) settings: SettingsArgs,
}

/// Change a function: its image, its settings, or both.
#[derive(clap::Args, Debug)]
pub(crate) struct UpdateArgs {
    /// What it is called.
    pub(crate) name: String,
    /// Its new code; the code before serves until that is there.
    #[arg(long, value_name = "IMAGE")]
    pub(crate) image: Option<String>,
    /// A variable that it is not to have any more.
    #[arg(long, value_name = "KEY")]
    pub(crate) unset_env: Vec<String>,
    #[command(flatten)]
    pub(crate) settings: SettingsArgs,
}

#[derive(clap::Args, Debug)]
pub(crate) struct SettingsArgs {
    /// Memory, in MB; processor time is in proportion.
    #[arg(long, value_name = "MB")]
    pub(crate) memory: Option<u32>,
    /// How long an invocation may take, in seconds.
    #[arg(long, value_name = "SECONDS")]
    pub(crate) timeout: Option<u32>,
    /// What /tmp takes, in MB.
    #[arg(long, value_name = "MB")]
    pub(crate) storage: Option<u32>,
    /// A variable of its environment.
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = variable)]
    pub(crate) env: Vec<(String, String)>,
    /// For people to read.
    #[arg(long, value_name = "TEXT")]
    pub(crate) description: Option<String>,
    /// What in the image answers, where that is the image's command, as in AWS's own base images: such as app.handler.
    #[arg(long, value_name = "NAME", conflicts_with = "command")]
    pub(crate) handler: Option<String>,
    /// Do not wait until the image is there.
    #[arg(long)]
    pub(crate) no_wait: bool,
    /// The command, in place of the image's.
    #[arg(last = true, value_name = "CMD")]
    pub(crate) command: Vec<String>,
}

fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("expected KEY=VALUE".to_owned()),
    }
}

/// Invoke a function and print its answer. Ends with 3 if the function failed, with 1 if it could not be invoked.
#[derive(clap::Args, Debug)]
pub(crate) struct InvokeArgs {
    /// Its name or ARN.
    pub(crate) name: String,
    /// What it is given: JSON, @FILE, or - for standard input.
    #[arg(value_name = "PAYLOAD", allow_negative_numbers = true)]
    pub(crate) payload: Option<String>,
    /// Do not wait for the answer: it is run at least once.
    #[arg(long)]
    pub(crate) event: bool,
    /// Print the end of its log on standard error.
    #[arg(long, conflicts_with = "event")]
    pub(crate) tail: bool,
    /// A version or an alias.
    #[arg(long, value_name = "NAME")]
    pub(crate) qualifier: Option<String>,
}

/// Show what a function writes.
#[derive(clap::Args, Debug)]
pub(crate) struct LogsArgs {
    /// Its name.
    pub(crate) name: String,
    /// Go on with what comes, until the function is deleted.
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Only what was written within that time: 30s, 10m, 2h.
    #[arg(long, value_name = "TIME", conflicts_with = "lines")]
    pub(crate) since: Option<Age>,
    /// So many lines of the end.
    #[arg(short = 'n', long, value_name = "N", default_value_t = 200)]
    pub(crate) lines: usize,
}

/// Watch what functions and their sandboxes do.
#[derive(clap::Args, Debug)]
#[command(after_help = "Keys: q ends; s sorts by another column; arrows and page keys scroll.")]
pub(crate) struct TopArgs {
    #[command(flatten)]
    pub(crate) endpoint: EndpointArgs,
    /// Print it once, as plain text.
    #[arg(long)]
    pub(crate) once: bool,
    /// How often to look: 1s, 5s.
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = interval)]
    pub(crate) interval: Duration,
    /// The service's status token (`serve --status-token-file`), which shows every tenant's functions.
    #[arg(long, value_name = "FILE", env = "SNOWMELT_STATUS_TOKEN_FILE")]
    pub(crate) token_file: Option<PathBuf>,
}

fn interval(text: &str) -> Result<Duration, String> {
    let Age(interval) = text.parse()?;
    if interval.is_zero() { Err("expected a second or more".to_owned()) } else { Ok(interval) }
}
