//! `snowmelt serve`: functions, by the Lambda API.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::json;
use snowmelt_service::{
    AccessKey, OUTGOING_PROGRAMS, OutgoingNetwork, Place, Service, ServiceOptions, UrlBase, serve as answer,
};

use crate::app::App;
use crate::args::ServiceArgs;
use crate::commands::worker::raise_file_limit;
use crate::config::absolute;
use crate::output;

/// Of a status token, in characters.
const LEAST_TOKEN: usize = 16;
/// How long sandboxes may take to end with the service.
const END_PATIENCE: Duration = Duration::from_secs(5);

pub(crate) fn serve(app: &App, args: &ServiceArgs) -> Result<ExitCode> {
    ensure!(rustix::process::geteuid().is_root(), "sandboxes mount images, which needs root: use sudo");
    let mut options = options(app, args)?;
    ensure!(
        !options.access_keys.is_empty() || args.listen.ip().is_loopback(),
        "without --access-keys everybody who reaches {} may run code here: listen on 127.0.0.1, or give keys",
        args.listen
    );
    let token = options.status_token.clone();
    raise_file_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("starting threads")?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind(args.listen).await;
        let listener = listener.with_context(|| format!("listening on {}", args.listen))?;
        let address = listener.local_addr()?;
        if args.url_domain.is_none() {
            options.urls.port = Some(address.port());
        }
        let service = Service::start(options).map_err(|error| anyhow::anyhow!("starting: {error}"))?;
        output::print(&ready(app.json, address, token.as_deref()))?;
        let mut terminated = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        tokio::select! {
            () = answer(std::sync::Arc::clone(&service), listener) => {}
            _ = tokio::signal::ctrl_c() => {}
            _ = terminated.recv() => {}
        }
        service.end(END_PATIENCE).await;
        Ok(ExitCode::SUCCESS)
    })
}

/// `token` is there where keys are.
fn ready(is_json: bool, address: std::net::SocketAddr, token: Option<&str>) -> String {
    // What follows the number sign stays in the browser.
    let fragment = token.map(|token| format!("#token={token}")).unwrap_or_default();
    let page = format!("http://{address}/{fragment}");
    if is_json {
        return format!("{}\n", json!({ "endpoint": format!("http://{address}"), "page": page }));
    }
    let keys = if token.is_some() {
        "with one of the access keys that you gave it"
    } else {
        "with any credentials (AWS_ACCESS_KEY_ID=any AWS_SECRET_ACCESS_KEY=any AWS_REGION=us-east-1)"
    };
    format!(
        "functions at http://{address}\nuse it {keys}:\n  aws --endpoint-url http://{address} lambda list-functions\nsee what they do: {page}\n"
    )
}

fn options(app: &App, args: &ServiceArgs) -> Result<ServiceOptions> {
    let is_account = args.account.len() == 12 && args.account.bytes().all(|byte| byte.is_ascii_digit());
    ensure!(is_account, "--account {}: expected twelve digits", args.account);
    let agent = app.config.agent()?;
    let access_keys = args.access_keys.as_deref().map(read_keys).transpose()?.unwrap_or_default();
    let status_token = match &args.status_token_file {
        _ if access_keys.is_empty() => None,
        Some(file) => Some(read_token(file)?),
        None => Some(random_token()?),
    };
    Ok(ServiceOptions {
        folder: match &args.folder {
            Some(folder) => absolute(folder)?,
            None => app.config.cache_dir.join("functions"),
        },
        place: Place { region: args.region.clone(), account: args.account.clone() },
        access_keys,
        status_token,
        allows_local_images: args.allow_local_images,
        program: agent.agent_command.clone(),
        agent,
        state: app.state()?.path().to_owned(),
        account_concurrency: args.concurrency,
        burst: args.burst,
        idle: args.idle.0,
        retry_after: args.retry_after.0,
        destinations: args.destinations.as_deref().map(absolute).transpose()?,
        allows_http_destinations: args.allow_http_destinations,
        runtimes: args.runtime.iter().cloned().collect(),
        urls: args.url_domain.clone().unwrap_or_else(|| UrlBase {
            scheme: "http".into(),
            domain: "localhost".into(),
            // Known once it listens.
            port: None,
        }),
        outgoing: outgoing(args)?,
        environment: app.config.environment(),
    })
}

/// What connects functions must be there before any is to be started.
fn outgoing(args: &ServiceArgs) -> Result<OutgoingNetwork> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let is_there = |name: &&str| std::env::split_paths(&path).any(|directory| directory.join(name).is_file());
    if args.outgoing_network != OutgoingNetwork::None
        && let Some(missing) = OUTGOING_PROGRAMS.iter().find(|name| !is_there(name))
    {
        bail!("--outgoing-network needs `{missing}`, which is not in PATH: apt-get install passt iproute2");
    }
    Ok(args.outgoing_network)
}

fn read_keys(path: &std::path::Path) -> Result<Vec<AccessKey>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty() && !line.starts_with('#'));
    let keys: Vec<AccessKey> = lines
        .map(|(number, line)| match line.split_whitespace().collect::<Vec<_>>().as_slice() {
            [id, secret, tenant, token @ ..] if token.len() <= 1 => {
                snowmelt_chunk::check_tenant(tenant)
                    .with_context(|| format!("{} line {}", path.display(), number + 1))?;
                let (id, secret, tenant) = ((*id).to_owned(), (*secret).to_owned(), (*tenant).to_owned());
                // A temporary key has a token that comes with each request.
                let session_token = token.first().map(|token| (*token).to_owned());
                Ok(AccessKey { id, secret, tenant, session_token })
            }
            _ => bail!(
                "{} line {}: expected KEY SECRET TENANT, and TOKEN for a temporary key",
                path.display(),
                number + 1
            ),
        })
        .collect::<Result<_>>()?;
    ensure!(!keys.is_empty(), "{} has no access key", path.display());
    Ok(keys)
}

/// A token as `top` and the service read it.
pub(crate) fn read_token(path: &std::path::Path) -> Result<String> {
    let token = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let token = token.trim();
    let is_plain = token.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~+/=".contains(&byte));
    ensure!(
        token.len() >= LEAST_TOKEN && is_plain,
        "{}: expected a token of at least {LEAST_TOKEN} letters and digits, such as openssl rand -hex 16 gives",
        path.display()
    );
    Ok(token.to_owned())
}

/// One that nobody guesses.
fn random_token() -> Result<String> {
    let mut bytes = [0; 16];
    let mut random = std::fs::File::open("/dev/urandom").context("opening /dev/urandom")?;
    std::io::Read::read_exact(&mut random, &mut bytes).context("reading /dev/urandom")?;
    Ok(format!("{:032x}", u128::from_be_bytes(bytes)))
}
