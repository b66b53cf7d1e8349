//! `snowmelt`: publishes container images as encrypted chunks and runs them without pulling them first.

mod app;
mod args;
mod commands;
mod config;
mod output;
mod units;

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;

use crate::args::{Args, Command};

fn main() -> ExitCode {
    let args = Args::parse();
    // The agent sets up messages and signals of its own, before any thread exists.
    if matches!(args.command, Command::Agent) {
        return ExitCode::from(snowmelt_sandbox::agent_main());
    }
    let filter = tracing_subscriber::EnvFilter::try_from_env("SNOWMELT_LOG").unwrap_or_else(|_| "warn".into());
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    // Fails only where another subscriber is set, and here none is.
    let _ = subscriber.try_init();
    let is_run = matches!(args.command, Command::Run(_));
    commands::execute(&args).unwrap_or_else(|error| {
        // Where standard error is closed there is nobody to tell.
        let _ = writeln!(std::io::stderr(), "snowmelt: {}", message(&error));
        let own_fault = if is_run { 125 } else { 1 };
        let code = error
            .downcast_ref::<snowmelt_sandbox::Error>()
            .map_or(own_fault, |error| if is_run { error.exit_code() } else { 1 });
        ExitCode::from(code)
    })
}

/// An error with its causes. Libraries put the cause into their message where it tells something; it is not said twice.
fn message(error: &anyhow::Error) -> String {
    error.chain().skip(1).fold(error.to_string(), |text, cause| {
        let cause = cause.to_string();
        if text.contains(&cause) { text } else { format!("{text}: {cause}") }
    })
}
