//! `keys status` and `keys rotate`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use snowmelt_chunk::{KeyService as _, KeyUse};
use snowmelt_keys::Service;
use snowmelt_store::{Error, Rewrapped, Store, each_image, rewrap};

use crate::app::App;
use crate::args::{KeysArgs, KeysCommand, KeysRotateArgs, KeysStatusArgs};
use crate::output;

pub(crate) fn keys(app: &App, args: &KeysArgs) -> Result<ExitCode> {
    let store = app.store()?;
    match &args.command {
        KeysCommand::Status(args) => status(app, &store, args),
        KeysCommand::Rotate(args) => rotate(app, &store, args),
    }
}

/// The id of the key that a tenant's new manifests are sealed under; `None` for one that has no key in a file yet.
fn current_key(app: &App, tenant: &str) -> Result<Option<String>> {
    if app.config.keys == Service::Local && !app.config.keys_dir.join(format!("{tenant}.key")).exists() {
        return Ok(None);
    }
    // The services tell which key they use by using it.
    let (_, wrapped) = app.keys(tenant)?.generate_data_key(&KeyUse { tenant, image: "keys:status" })?;
    Ok(Some(wrapped.key_id))
}

fn status(app: &App, store: &Store, args: &KeysStatusArgs) -> Result<ExitCode> {
    let (mut list, mut rows, mut failed) = (Vec::new(), Vec::new(), false);
    for tenant in app.tenants(store, args.all_tenants)? {
        let current = current_key(app, &tenant).unwrap_or_else(|error| {
            tracing::warn!("which key of tenant {tenant} is current is not known: {error}");
            failed = true;
            None
        });
        let mut keys: BTreeMap<String, u64> = current.iter().map(|key| (key.clone(), 0)).collect();
        each_image(store, std::slice::from_ref(&tenant), &mut |listed| {
            match listed.image {
                Ok((_, manifest)) => *keys.entry(manifest.key_id().to_owned()).or_default() += 1,
                Err(error) => {
                    tracing::warn!("{tenant}/{} is not counted: {error}", listed.name);
                    failed = true;
                }
            }
            Ok(())
        })?;
        for (key, images) in keys {
            let is_current = current.as_ref() == Some(&key);
            let label = key.escape_debug().to_string();
            rows.push(vec![tenant.clone(), label, images.to_string(), if is_current { "current" } else { "" }.into()]);
            list.push(json!({ "tenant": tenant, "key": key, "images": images, "is_current": is_current }));
        }
    }
    if app.json {
        output::print_json(&list)?;
    } else if rows.is_empty() {
        output::print("No keys yet: the first publish makes one.\n")?;
    } else {
        output::print(&output::table(&["TENANT", "KEY", "IMAGES", ""], &[2], rows))?;
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn rotate(app: &App, store: &Store, args: &KeysRotateArgs) -> Result<ExitCode> {
    let service = &app.config.keys;
    ensure!(
        args.keep_key || *service == Service::Local,
        "only keys in files are rotated by snowmelt: rotate {service} in its service, then seal images under the new key with \
         `snowmelt keys rotate --keep-key`"
    );
    store.check_writable()?;
    // Another key is not to be made then.
    let again = format!("snowmelt keys rotate --keep-key{}", if args.all_tenants { " --all-tenants" } else { "" });
    let (mut done, mut already) = (0, 0);
    let (mut kept, mut failures) = (Vec::new(), Vec::new());
    for tenant in app.tenants(store, args.all_tenants)? {
        let names = store.list_names(&tenant)?;
        if args.all_tenants && names.is_empty() {
            continue;
        }
        let current = if args.keep_key {
            current_key(app, &tenant)
        } else {
            app.local_keys().rotate(&tenant).map_err(anyhow::Error::from).map(|rotated| {
                kept.push((tenant.clone(), rotated.previous_path));
                Some(rotated.key_id)
            })
        };
        let current = match current {
            Ok(Some(current)) => current,
            Ok(None) if args.all_tenants => {
                failures.push((tenant, "its key is not on this machine".to_owned()));
                continue;
            }
            Ok(None) => anyhow::bail!("tenant {tenant} has no key in {}", app.config.keys_dir.display()),
            Err(error) if args.all_tenants => {
                failures.push((tenant, error.to_string()));
                continue;
            }
            Err(error) => return Err(error),
        };
        let keys = app.keys(&tenant)?;
        let bar = output::count_bar("sealing", app.json);
        bar.set_length(names.len() as u64);
        for (name, _) in names {
            match rewrap(store, &tenant, &name, &keys, &|key| key == current) {
                Ok(Rewrapped::Done) => done += 1,
                Ok(Rewrapped::AlreadyCurrent) => already += 1,
                Err(error @ (Error::Unavailable { .. } | Error::Refused { .. })) => {
                    let made =
                        kept.iter().map(|(tenant, file)| format!("of {tenant} the old key is {}", file.display()));
                    let made = made.collect::<Vec<_>>().join(", ");
                    let made = if made.is_empty() { made } else { format!("new keys are made ({made}); ") };
                    return Err(anyhow::Error::from(error))
                        .with_context(|| format!("{done} images are sealed anew; {made}to go on: {again}"));
                }
                // Removed since it was listed.
                Err(Error::NotFound { .. }) if store.read_name(&tenant, &name).is_err() => {}
                Err(error) => failures.push((format!("{tenant}/{name}"), reason(&error))),
            }
            bar.inc(1);
        }
        bar.finish_and_clear();
    }
    if app.json {
        output::print_json(&json!({
            "sealed": done,
            "already_current": already,
            "kept_keys": kept.iter().map(|(tenant, file)| json!({ "tenant": tenant, "file": file })).collect::<Vec<_>>(),
            "failed": failures.iter().map(|(image, error)| json!({ "image": image, "error": error })).collect::<Vec<_>>(),
        }))?;
    } else {
        let mut text =
            format!("Sealed {} under the current key; {already} were already.\n", output::count(done, "image"));
        for (tenant, file) in &kept {
            let _ = writeln!(
                text,
                "The key before it is kept in {}: remove it once `snowmelt keys status` shows no image of {tenant} under it.",
                file.display()
            );
        }
        if !failures.is_empty() {
            let rows = failures.iter().map(|(image, error)| vec![image.clone(), error.clone()]).collect();
            text += &output::table(&["FAILED", "WHY"], &[], rows);
            let _ = writeln!(text, "To try these again: {again}");
        }
        output::print(&text)?;
    }
    Ok(if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn reason(error: &Error) -> String {
    match error {
        Error::RootClosed { root } => format!("it is in the retired root {root}: `snowmelt gc migrate` first"),
        error => error.to_string(),
    }
}
