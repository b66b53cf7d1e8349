//! `snowmelt`: publishes container images as encrypted chunks and runs them without pulling them first.

mod app;
mod args;
mod chunk_map;
mod commands;
mod config;
mod output;
mod units;

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser as _;

use crate::args::{Args, Command};

fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => return refuse(&error),
    };
    // The agent sets up messages and signals of its own, before any thread exists.
    if let Command::Agent { open } = args.command {
        return ExitCode::from(if open { snowmelt_sandbox::opener_main() } else { snowmelt_sandbox::agent_main() });
    }
    if matches!(args.command, Command::FunctionHost) {
        snowmelt_chunk::no_core_files();
        return snowmelt_service::host_main();
    }
    snowmelt_chunk::no_core_files();
    let is_run = matches!(args.command, Command::Run(_));
    set_up_messages().and_then(|()| commands::execute(&args)).unwrap_or_else(|error| {
        // Where standard error is closed there is nobody to tell.
        let _ = writeln!(std::io::stderr(), "snowmelt: {}", message(&error));
        let own_fault = if is_run { OWN_FAULT_OF_RUN } else { 1 };
        let code = error
            .downcast_ref::<snowmelt_sandbox::Error>()
            .map_or(own_fault, |error| if is_run { error.exit_code() } else { 1 });
        ExitCode::from(code)
    })
}

/// What `run` ends with where the fault is ours or our user's, so that it cannot be mistaken for the command's own code.
const OWN_FAULT_OF_RUN: u8 = 125;

/// Prints what is wrong with the arguments, or the help that was asked for.
fn refuse(error: &clap::Error) -> ExitCode {
    let _ = error.print();
    let is_run = std::env::args_os().skip(1).find(|word| !word.as_encoded_bytes().starts_with(b"-"));
    if error.use_stderr() && is_run.is_some_and(|word| word == "run") {
        return ExitCode::from(OWN_FAULT_OF_RUN);
    }
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}

fn set_up_messages() -> anyhow::Result<()> {
    let filter = match std::env::var("SNOWMELT_LOG") {
        Ok(text) => tracing_subscriber::EnvFilter::builder()
            .parse(&text)
            .with_context(|| format!("SNOWMELT_LOG={text}: expected such as warn, debug or snowmelt_device=debug"))?,
        // What an SDK tries in vain is said by the error that comes of it, in a line.
        Err(_) => "warn,aws_config=off".into(),
    };
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    // Fails only where another subscriber is set, and here none is.
    let _ = subscriber.with_ansi(colours).try_init();
    Ok(())
}

/// An error with its causes. Libraries put the cause into their message where it tells something; it is not said twice.
fn message(error: &anyhow::Error) -> String {
    error.chain().skip(1).fold(error.to_string(), |text, cause| {
        let cause = cause.to_string();
        if text.contains(&cause) { text } else { format!("{text}: {cause}") }
    })
}
