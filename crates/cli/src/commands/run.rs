//! `run`.

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::Result;
use snowmelt_sandbox::{RunSpec, run as run_sandbox};

use crate::app::App;
use crate::args::RunArgs;
use crate::commands::last_run;
use crate::output;

pub(crate) fn run(app: &App, args: &RunArgs) -> Result<ExitCode> {
    let state = app.state()?;
    let mut env = Vec::new();
    for text in &args.env {
        env.extend(RunSpec::parse_env(text)?);
    }
    let spec = RunSpec {
        image: args.image.to_string(),
        command: args.command.clone(),
        entrypoint: args.entrypoint.as_ref().map(|program| {
            // As with other runtimes, an empty text clears the entrypoint.
            if program.is_empty() { Vec::new() } else { vec![program.clone()] }
        }),
        env,
        volumes: args.volume.clone(),
        user: args.user.clone(),
        workdir: args.workdir.clone(),
        read_only: args.read_only,
        network: args.net,
        memory_bytes: args.memory,
        cpus: args.cpus,
        interactive: args.interactive,
        tty: args.tty,
        hostname: args.hostname.clone(),
        stats: args.stats,
        ..RunSpec::default()
    };
    let bar = output::LoadingBar::new(app.json);
    let outcome = run_sandbox(&spec, &app.config.agent()?, &state, &|step| bar.show(step))?;
    let figures = last_run::figures(&outcome);
    if args.stats {
        let text = if app.json { format!("{figures}\n") } else { last_run::table(&figures) };
        // The command's own output is what counts; where standard error is gone, so are the figures.
        let _ = std::io::stderr().lock().write_all(text.as_bytes());
    }
    if let Err(error) = last_run::save(app, &args.image, &figures) {
        tracing::debug!("the figures of this run are not kept: {error}");
    }
    Ok(ExitCode::from(outcome.exit_code))
}
