//! The commands, one module for each kind of work.

mod access;
mod cache_node;
mod copy;
mod functions;
mod gc;
mod images;
mod inspect;
mod keys;
mod last_run;
mod mount;
mod publish;
mod run;
mod salt;
mod scrub;
mod serve;
mod top;
mod usage;
mod worker;

use std::process::ExitCode;

use anyhow::Result;
use clap::CommandFactory as _;

use crate::app::App;
use crate::args::{Args, Command};
use crate::output;

/// Runs one command; an error has printed nothing yet.
pub(crate) fn execute(args: &Args) -> Result<ExitCode> {
    if let Command::Completions(completions) = &args.command {
        let mut bytes = Vec::new();
        clap_complete::generate(completions.shell, &mut without_hidden(&Args::command()), "snowmelt", &mut bytes);
        output::print(&String::from_utf8_lossy(&bytes))?;
        return Ok(ExitCode::SUCCESS);
    }
    if let Command::CacheNode(node) = &args.command {
        return cache_node::cache_node(&args.global, node);
    }
    // They speak to a service, wherever that is, and need nothing of this machine.
    match &args.command {
        Command::Functions(functions) => return functions::functions(args.global.json, functions),
        Command::Top(top) => return top::top(args.global.json, top),
        _ => {}
    }
    let app = App::new(&args.global)?;
    // These do so themselves, where it belongs among their steps.
    if !matches!(args.command, Command::Run(_) | Command::Mount(_) | Command::Unmount(_)) {
        app.clean_up();
    }
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
        Command::Du(args) => usage::usage(&app, args),
        Command::Gc(args) => gc::gc(&app, args),
        Command::Salt(args) => salt::salt(&app, args),
        Command::Keys(args) => keys::keys(&app, args),
        Command::Cp(args) => copy::copy(&app, args),
        Command::Scrub(args) => scrub::scrub(&app, args),
        Command::Worker(args) => worker::worker(&app, args),
        Command::Serve(args) => serve::serve(&app, args),
        Command::Completions(_)
        | Command::CacheNode(_)
        | Command::Functions(_)
        | Command::Top(_)
        | Command::Agent { .. }
        | Command::FunctionHost => {
            unreachable!("answered before")
        }
    }
}

/// Commands that are not for people are not completed.
fn without_hidden(command: &clap::Command) -> clap::Command {
    let shown: Vec<clap::Command> =
        command.get_subcommands().filter(|subcommand| !subcommand.is_hide_set()).cloned().collect();
    clap::Command::new("snowmelt").args(command.get_arguments().cloned()).subcommands(shown)
}
