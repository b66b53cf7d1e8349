//! `snowmelt fn`: functions of a service, by its API.

pub(crate) mod client;
mod invoke;
pub(crate) mod list;
mod logs;
mod settings;

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use reqwest::Method;

use self::client::{Asked, Client};
use crate::args::{FunctionsAction, FunctionsArgs};

pub(crate) fn functions(is_json: bool, args: &FunctionsArgs) -> Result<ExitCode> {
    let client = Client::new(&args.endpoint.endpoint, None)?;
    let client = &client;
    block_on(async {
        match &args.action {
            FunctionsAction::Create(args) => settings::create(client, is_json, args).await,
            FunctionsAction::Update(args) => settings::update(client, is_json, args).await,
            FunctionsAction::Invoke(args) => invoke::invoke(client, is_json, args).await,
            FunctionsAction::Logs(args) => logs::logs(client, args).await,
            FunctionsAction::Ls => list::list(client, is_json).await,
            FunctionsAction::Rm { names } => remove(client, names).await,
        }
    })?
}

/// Runs what waits for a service, in this thread.
pub(crate) fn block_on<T>(work: impl Future<Output = T>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting")?;
    Ok(runtime.block_on(work))
}

/// Each is tried, whatever becomes of the others.
async fn remove(client: &Client, names: &[String]) -> Result<ExitCode> {
    let mut failed = None;
    for name in names {
        let asked = Asked { path: vec!["2015-03-31", "functions", name], ..Asked::default() };
        if let Err(error) = client.ask(Method::DELETE, asked).await
            && let Some(earlier) = failed.replace(error)
        {
            eprintln!("snowmelt: {earlier:#}");
        }
    }
    failed.map_or(Ok(ExitCode::SUCCESS), Err)
}
