//! The command: arguments, environment, identity, working directory.

use serde_json::{Value, json};
use snowmelt_image::ImageConfig;

use super::{CAPABILITIES, Inputs};
use crate::{Error, RunSpec, users};

/// Where commands are looked for when neither image nor caller says; docker's.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

pub(super) fn process(inputs: &Inputs<'_>) -> Result<Value, Error> {
    let (spec, image) = (inputs.spec, inputs.image);
    let args = arguments(spec, image)?;
    let user = users::resolve(spec.user.as_deref().unwrap_or(&image.user), inputs.root)?;
    let directory = working_directory(spec, image)?;
    let identity = json!({ "uid": user.uid, "gid": user.gid, "additionalGids": user.additional_gids });
    // As in docker: only root starts with effective capabilities; others can reach them through file capabilities.
    let without = |name: &&str| !spec.without_capabilities.iter().any(|other| other == name);
    let bounding: Vec<&str> = CAPABILITIES.into_iter().filter(without).collect();
    let own: &[&str] = if user.uid == 0 { &bounding } else { &[] };
    Ok(json!({
        "terminal": spec.tty,
        "user": identity,
        "args": args,
        "env": environment(spec, image, inputs.hostname, &user.home),
        "cwd": directory,
        "capabilities": { "bounding": bounding, "effective": own, "permitted": own },
        "noNewPrivileges": false,
    }))
}

/// Entrypoint and command, as docker joins them: an entrypoint from the caller drops the image's command.
fn arguments(spec: &RunSpec, image: &ImageConfig) -> Result<Vec<String>, Error> {
    let mut arguments = spec.entrypoint.as_ref().unwrap_or(&image.entrypoint).clone();
    arguments.extend_from_slice(command(spec, image));
    if arguments.is_empty() {
        return Err(Error::invalid(spec.image.clone(), "the image names no command: give one after `--`"));
    }
    match arguments.iter().find(|argument| argument.contains('\0')) {
        Some(argument) => Err(Error::invalid(format!("argument {argument:?}"), "contains a zero byte")),
        None => Ok(arguments),
    }
}

fn command<'a>(spec: &'a RunSpec, image: &'a ImageConfig) -> &'a [String] {
    if spec.command.is_empty() && spec.entrypoint.is_none() { &image.cmd } else { &spec.command }
}

/// Later entries replace earlier ones of the same name, in the earlier one's place.
fn environment(spec: &RunSpec, image: &ImageConfig, hostname: &str, home: &str) -> Vec<String> {
    let mut variables: Vec<(&str, &str)> = Vec::new();
    let mut set = |key, value| match variables.iter_mut().find(|variable| variable.0 == key) {
        Some(variable) => variable.1 = value,
        None => variables.push((key, value)),
    };
    set("PATH", DEFAULT_PATH);
    set("HOSTNAME", hostname);
    if spec.tty {
        set("TERM", "xterm");
    }
    for variable in &image.env {
        let (key, value) = variable.split_once('=').unwrap_or((variable, ""));
        set(key, value);
    }
    for (key, value) in &spec.env {
        set(key, value);
    }
    if let (Some(key), Some(word)) = (&spec.command_variable, command(spec, image).first()) {
        set(key, word);
    }
    if !variables.iter().any(|variable| variable.0 == "HOME") {
        variables.push(("HOME", home));
    }
    variables.into_iter().map(|(key, value)| format!("{key}={value}")).collect()
}

/// The runtime makes it if it is missing.
fn working_directory<'a>(spec: &'a RunSpec, image: &'a ImageConfig) -> Result<&'a str, Error> {
    let directory = spec.workdir.as_deref().unwrap_or(&image.working_dir);
    match directory {
        "" => Ok("/"),
        directory if directory.starts_with('/') => Ok(directory),
        directory => Err(Error::invalid(format!("working directory `{directory}`"), "must be an absolute path")),
    }
}
