//! `serve`.

use std::path::PathBuf;

use crate::units::Age;

/// Serve functions: the AWS Lambda API over images that load on demand (root).
#[derive(clap::Args, Debug)]
#[command(after_help = "The AWS CLI, the SDKs and Terraform use it with its address as their endpoint:\n  \
                  aws --endpoint-url http://127.0.0.1:9001 lambda list-functions\n\n\
                  Without an access key everybody who reaches it may do everything, so it then listens on loopback only.")]
pub(crate) struct ServiceArgs {
    /// Where to listen.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:9001")]
    pub(crate) listen: std::net::SocketAddr,
    /// Where functions and their logs are kept [default: functions/ in the cache directory].
    #[arg(long, value_name = "DIR", env = "SNOWMELT_FUNCTIONS_DIR")]
    pub(crate) folder: Option<PathBuf>,
    /// A file with the access keys that may call, one a line: KEY SECRET TENANT.
    #[arg(long, value_name = "FILE", env = "SNOWMELT_ACCESS_KEYS")]
    pub(crate) access_keys: Option<PathBuf>,
    /// A file with a token (16 characters or more): who has it sees what all tenants' functions do, on the page and in /metrics. With
    /// access keys and without this, a token is made for as long as this runs.
    #[arg(long, value_name = "FILE", env = "SNOWMELT_STATUS_TOKEN_FILE")]
    pub(crate) status_token_file: Option<PathBuf>,
    /// Let functions have images from files of this machine (oci:DIR:TAG and the like), which callers then can read.
    #[arg(long)]
    pub(crate) allow_local_images: bool,
    /// The image that functions of a zip package run on, by the name of their runtime: python3.12=registry.example/python:3.12. May be
    /// given several times.
    #[arg(long, value_name = "NAME=IMAGE", value_parser = runtime)]
    pub(crate) runtime: Vec<(String, String)>,
    /// The region of ARNs.
    #[arg(long, value_name = "NAME", default_value = "us-east-1")]
    pub(crate) region: String,
    /// The account of ARNs: twelve digits.
    #[arg(long, value_name = "DIGITS", default_value = "000000000000")]
    pub(crate) account: String,
    /// Invocations at once.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub(crate) concurrency: u32,
    /// New sandboxes of one function within ten seconds.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub(crate) burst: usize,
    /// How long until a failed asynchronous invocation is run again; the second time it waits twice as long.
    #[arg(long, value_name = "TIME", default_value = "1m", hide_short_help = true)]
    pub(crate) retry_after: Age,
    /// A folder that destinations of the form file://PATH may write to: each tenant to the folder of its name in it.
    #[arg(long, value_name = "DIR", hide_short_help = true)]
    pub(crate) destinations: Option<PathBuf>,
    /// Let destinations be addresses: records are sent from this machine, to whatever it reaches.
    #[arg(long, hide_short_help = true)]
    pub(crate) allow_http_destinations: bool,
    /// What function URLs end with: functions.example.org, or `http://example.org:8080` without TLS; something in front of the
    /// service passes them on with their host [default: http://localhost with the port of --listen].
    #[arg(long, value_name = "DOMAIN", value_parser = snowmelt_service::UrlBase::parse, hide_short_help = true)]
    pub(crate) url_domain: Option<snowmelt_service::UrlBase>,
    /// Where functions may connect to: `none`; `public`, the internet; `all`, private networks too. Never this machine or other functions.
    #[arg(long, value_name = "WHERE", default_value = "none")]
    pub(crate) outgoing_network: snowmelt_service::OutgoingNetwork,
    /// How long a sandbox may be idle: 90s, 10m.
    #[arg(long, value_name = "TIME", default_value = "10m")]
    pub(crate) idle: Age,
}

fn runtime(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, image)) if !name.is_empty() && !image.is_empty() && !image.starts_with('-') => {
            Ok((name.to_owned(), image.to_owned()))
        }
        _ => Err(format!("{text:?}: expected such as python3.12=registry.example/python:3.12")),
    }
}
