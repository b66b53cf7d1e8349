//! `mount` and `unmount`.

use std::process::ExitCode;

use anyhow::Result;
use serde_json::json;
use snowmelt_sandbox::{log_path, mount as mount_image, unmount as unmount_image};

use crate::app::App;
use crate::args::{MountArgs, UnmountArgs};
use crate::output;
use crate::units::Size;

pub(crate) fn mount(app: &App, args: &MountArgs) -> Result<ExitCode> {
    let state = app.state()?;
    let bar = output::LoadingBar::new(app.json);
    let progress = |step: snowmelt_sandbox::Step<'_>| bar.show(step);
    let record = mount_image(&args.image.to_string(), &args.dir, args.rw, &app.config.agent()?, &state, &progress)?;
    if app.json {
        output::print_json(&json!({
            "image": args.image.to_string(),
            "directory": record.directory,
            "writable": args.rw,
            "messages": log_path(&record, &state),
        }))?;
    } else {
        output::print(&format!(
            "Mounted {} at {}. Messages about it: {}\n",
            args.image,
            record.directory.display(),
            log_path(&record, &state).display()
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn unmount(app: &App, args: &UnmountArgs) -> Result<ExitCode> {
    let state = app.state()?;
    let stats = unmount_image(&args.dir, &state)?;
    if app.json {
        output::print_json(&json!({ "directory": args.dir, "stats": stats }))?;
    } else if let Some(stats) = stats {
        let (cache, origin) = (stats.from_tier("disk"), stats.from_tier("origin"));
        output::print(&format!(
            "Unmounted {}: touched {} of {} chunks; {} chunks ({}) from cache, {} ({}) from origin.\n",
            args.dir.display(),
            stats.touched_chunks,
            stats.image_chunks,
            cache.0,
            Size(cache.1),
            origin.0,
            Size(origin.1),
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}
