//! The commands, one module for each kind of work.

mod images;
mod inspect;
mod last_run;
mod mount;
mod publish;
mod run;
mod usage;

use std::process::ExitCode;

use anyhow::Result;
use clap::CommandFactory as _;

use crate::app::App;
use crate::args::{Args, Command};

/// Runs one command; an error has printed nothing yet.
pub(crate) fn execute(args: &Args) -> Result<ExitCode> {
    if let Command::Completions(completions) = &args.command {
        clap_complete::generate(completions.shell, &mut Args::command(), "snowmelt", &mut std::io::stdout());
        return Ok(ExitCode::SUCCESS);
    }
    let app = App::new(&args.global)?;
    match &args.command {
        Command::Publish(args) => publish::publish(&app, args),
        Command::Run(args) => run::run(&app, args),
        Command::Mount(args) => mount::mount(&app, args),
        Command::Unmount(args) => mount::unmount(&app, args),
        Command::Images(_) => images::list(&app),
        Command::Rm(args) => images::remove(&app, args),
        Command::Inspect(args) => inspect::inspect(&app, args),
        Command::Verify(args) => inspect::verify(&app, args),
        Command::Export(args) => inspect::export(&app, args),
        Command::Du(_) => usage::usage(&app),
        Command::Completions(_) | Command::Agent => unreachable!("answered before"),
    }
}
