//! `mount` and `unmount`.

use std::process::ExitCode;

use anyhow::Result;
use serde_json::json;
use snowmelt_sandbox::{mount as mount_image, unmount as unmount_image};

use crate::app::App;
use crate::args::{MountArgs, UnmountArgs};
use crate::output;

pub(crate) fn mount(app: &App, args: &MountArgs) -> Result<ExitCode> {
    let state = app.state()?;
    mount_image(&args.image.to_string(), &args.dir, args.rw, &app.config.agent()?, &state)?;
    if app.json {
        output::print_json(&json!({ "image": args.image.to_string(), "directory": args.dir, "writable": args.rw }))?;
    }
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn unmount(app: &App, args: &UnmountArgs) -> Result<ExitCode> {
    let state = app.state()?;
    unmount_image(&args.dir, &state)?;
    if app.json {
        output::print_json(&json!({ "directory": args.dir }))?;
    }
    Ok(ExitCode::SUCCESS)
}
