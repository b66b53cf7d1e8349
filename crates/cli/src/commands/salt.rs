//! `salt status` and `salt rotate`.

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::Result;
use serde_json::json;
use snowmelt_store::{Store, Usage, usage};

use crate::app::App;
use crate::args::{SaltArgs, SaltCommand};
use crate::output;
use crate::units::{Size, show_time};

pub(crate) fn salt(app: &App, args: &SaltArgs) -> Result<ExitCode> {
    let store = app.store()?;
    match args.command {
        SaltCommand::Status => status(app, &store),
        SaltCommand::Rotate => rotate(app, &store),
    }
}

/// Epoch, class and scope.
type Label<'a> = (u32, &'a str, &'a str);

fn status(app: &App, store: &Store) -> Result<ExitCode> {
    let salt = store.read_state()?.salt;
    let usage = usage_of_all(store)?;
    let (chunks, bytes) = (usage.chunks, usage.stored_bytes);
    let (images, tenants) = usage.most_shared;
    // By epoch, class and scope; what older versions published does not say.
    let mut domains: BTreeMap<Option<Label<'_>>, (u64, u64)> = BTreeMap::new();
    for image in &usage.images {
        let record = &image.record;
        let label = record.salt.as_ref().map(|salt| (salt.epoch, salt.class.as_str(), salt.scope.as_str()));
        let sum = domains.entry(label).or_default();
        *sum = (sum.0 + 1, sum.1 + record.stored_bytes);
    }
    if app.json {
        let domains: Vec<_> = domains
            .iter()
            .map(|(label, (images, bytes))| {
                json!({
                    "epoch": label.map(|label| label.0),
                    "class": label.map(|label| label.1),
                    "shared_by": label.map(|label| label.2),
                    "images": images,
                    "image_bytes": bytes,
                })
            })
            .collect();
        output::print_json(&json!({
            "epoch": salt.epoch,
            "since": salt.since,
            "rotation": { "chunks": chunks, "bytes": bytes },
            "most_shared": { "images": images, "tenants": tenants },
            "domains": domains,
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let since = if salt.since == 0 { String::new() } else { format!(", since {} UTC", show_time(salt.since)) };
    let mut text = output::pairs(&[
        ("Epoch", format!("{}{since}", salt.epoch)),
        ("Rotating costs", cost(chunks, bytes)),
        ("Most shared chunk", format!("in {} of {}", output::count(images, "image"), output::count(tenants, "tenant"))),
    ]);
    let rows = domains.into_iter().map(|(label, (images, bytes))| {
        let or_dash = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
        let (epoch, class, scope) = match label {
            Some((epoch, class, scope)) => (epoch.to_string(), or_dash(class), or_dash(scope)),
            None => ("-".into(), "-".into(), "-".into()),
        };
        vec![epoch, class, scope, images.to_string(), Size(bytes).to_string()]
    });
    text += "\n";
    text += &output::table(&["EPOCH", "CLASS", "SHARED BY", "IMAGES", "SIZE"], &[3, 4], rows.collect());
    output::print(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// What all images of all tenants take. What is damaged is logged and left out.
fn usage_of_all(store: &Store) -> Result<Usage> {
    let usage = usage(store, &store.list_tenants()?, &[])?;
    for (tenant, name, error) in &usage.damaged {
        tracing::warn!("{tenant}/{name} is not counted: {error}");
    }
    Ok(usage)
}

fn cost(chunks: u64, bytes: u64) -> String {
    format!("{} ({}) stored again, if every image is published again", output::count(chunks, "chunk"), Size(bytes))
}

fn rotate(app: &App, store: &Store) -> Result<ExitCode> {
    store.check_writable()?;
    // First: where a secret has leaked, it must not wait for what cannot be counted.
    let salt = store.rotate_salt()?;
    let usage = usage_of_all(store);
    let usage = usage.inspect_err(|error| tracing::warn!("what it costs cannot be counted: {error}")).ok();
    if app.json {
        output::print_json(&json!({
            "epoch": salt.epoch,
            "since": salt.since,
            "rotation": usage.map(|usage| json!({ "chunks": usage.chunks, "bytes": usage.stored_bytes })),
        }))?;
    } else {
        output::print(&format!(
            "Salts are of epoch {} now. All images stay readable.{}\n\
             Publish images again as it suits you; what no image needs then goes when its root is collected.\n",
            salt.epoch,
            usage.map_or_else(String::new, |usage| format!(" It costs {}.", cost(usage.chunks, usage.stored_bytes)))
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}
