//! Commands that look after a store: collection, salts, keys, copies, scrubbing.

use clap::{ArgAction, Subcommand};
use snowmelt_keys::Service;
use snowmelt_store::ImageName;

use crate::units::Size;

/// Collect what no image needs any more, root by root.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Chunks lie in roots. A root is active (images are published to it), then retired
(what is live is copied to its successor), then expired (whoever still reads from
it raises an alarm), then deleted with all that is left in it. Every command may
be cut off and repeated, and run on several machines at once.

Examples:
  snowmelt gc run                             every step that is due; for a timer
  snowmelt gc status                          what is where, and what is wrong
  snowmelt gc rotate && snowmelt gc migrate   begin now")]
pub(crate) struct GcArgs {
    #[command(subcommand)]
    pub(crate) command: GcCommand,
}

#[derive(Subcommand, Debug)]
pub(crate) enum GcCommand {
    Run(GcRunArgs),
    Status(GcStatusArgs),
    Rotate(GcRotateArgs),
    Migrate(GcMigrateArgs),
    Expire(GcExpireArgs),
    Delete(GcDeleteArgs),
    Clear(GcClearArgs),
}

/// Do every step that is due: rotate, migrate, expire, delete.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Ages come from [gc] of the configuration file; these are the defaults:
  [gc]
  rotate_every = \"30d\"     a new root so often; or \"never\"
  retire_for = \"1d\"        retired at least so long
  expire_for = \"7d\"        expired at least so long: at least 5m
  salt_every = \"never\"     new salts so often

Exits with 1 where there are alarms, or images that cannot be copied; with 0 where
another collector is at it.

Examples:
  snowmelt gc run
  snowmelt gc run --policy /etc/snowmelt/gc.toml --json")]
pub(crate) struct GcRunArgs {
    /// A file with the fields of the table `gc`, instead of the configuration's.
    #[arg(long, value_name = "FILE")]
    pub(crate) policy: Option<std::path::PathBuf>,
}

/// Show the roots, what is in each, and what keeps it there.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
The root marked with * is the one that images are published to. Exits with 1 where
there are alarms or damaged names, but with 0 for --metrics.

Examples:
  snowmelt gc status
  snowmelt gc status --count                       also chunks, and how much is garbage
  snowmelt gc status --metrics > new && mv new snowmelt.prom      in the folder
                                    of node_exporter's textfile collector")]
pub(crate) struct GcStatusArgs {
    /// Count the chunks of each root: a request for every thousand, and every manifest is read.
    #[arg(long)]
    pub(crate) count: bool,
    /// Print metrics for Prometheus.
    #[arg(long, conflicts_with = "json")]
    pub(crate) metrics: bool,
}

/// Make a new active root and retire those before it.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Running sandboxes go on; images are copied by `snowmelt gc migrate`.

Examples:
  snowmelt gc rotate                     retires all active roots
  snowmelt gc rotate --to y2027
  snowmelt gc rotate --add --to second   one more active root; publish to it with --root second
  snowmelt gc rotate --retire second     retires only that one")]
pub(crate) struct GcRotateArgs {
    /// What the new root is called: a name that was never used; chosen where it is left out.
    #[arg(long, value_name = "NAME")]
    pub(crate) to: Option<String>,
    /// Retire no root.
    #[arg(long, conflicts_with = "retire")]
    pub(crate) add: bool,
    /// Retire only this root; may be given more than once.
    #[arg(long, value_name = "ROOT", action = ArgAction::Append)]
    pub(crate) retire: Vec<String>,
}

/// Copy what is live in retired roots to their successors.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Live is what a name stands for, of any tenant, and what a sandbox uses. No key is
needed. Exits with 1 where an image could not be copied.

Examples:
  snowmelt gc migrate
  snowmelt gc migrate main")]
pub(crate) struct GcMigrateArgs {
    /// Which roots; all retired ones where none is given.
    #[arg(value_name = "ROOT")]
    pub(crate) roots: Vec<String>,
}

/// Say that nothing live is left in a retired root; whoever reads from it then raises an alarm.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Exits with 1 where something keeps the root: images that are not migrated, running
sandboxes, publishes under way, or its age (retire_for of [gc]).

Examples:
  snowmelt gc expire main
  snowmelt gc expire main --now")]
pub(crate) struct GcExpireArgs {
    #[command(flatten)]
    pub(crate) step: StepArgs,
}

// Roots that are taken on to their next state. No docstring: it would take the place of the commands' own.
#[derive(clap::Args, Debug)]
pub(crate) struct StepArgs {
    /// Which roots.
    #[arg(value_name = "ROOT", required = true)]
    pub(crate) roots: Vec<String>,
    /// However short it has been in its state; whatever else keeps it still does.
    #[arg(long)]
    pub(crate) now: bool,
}

/// Delete an expired root and remove its objects. This cannot be undone.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Exits with 1 where something keeps the root: alarms, damaged names, or its age
(expire_for of [gc]). A root that is deleted is swept again.

With --now, a sandbox that was started within the last half minute may have had no
time to say which root it reads from: wait that long after `snowmelt gc expire`.

Examples:
  snowmelt gc delete main
  snowmelt gc delete main --now")]
pub(crate) struct GcDeleteArgs {
    #[command(flatten)]
    pub(crate) step: StepArgs,
}

/// Say that the alarms of a root are dealt with, so that it can go on to be deleted.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Example:\n  snowmelt gc clear main      after finding out who read from it, see `snowmelt gc status`"
)]
pub(crate) struct GcClearArgs {
    /// Which root.
    #[arg(value_name = "ROOT")]
    pub(crate) root: String,
}

/// Show which salts decide with whom chunks are shared, or begin new ones.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:\n  snowmelt salt status\n  snowmelt salt rotate")]
pub(crate) struct SaltArgs {
    #[command(subcommand)]
    pub(crate) command: SaltCommand,
}

#[derive(Subcommand, Debug)]
pub(crate) enum SaltCommand {
    /// Show the epoch of salts, what rotating it would cost, and how many images one chunk is in.
    #[command(after_help = "Examples:\n  snowmelt salt status\n  snowmelt salt status --json | jq .most_shared")]
    Status,
    /// Begin a new epoch: what is published from now on shares no chunk with what was before.
    #[command(after_help = "\
Nothing is copied, and all images stay readable: manifests carry their keys.

Example:
  snowmelt salt rotate")]
    Rotate,
}

/// Show which keys images are sealed under, or rotate a tenant's key.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:\n  snowmelt keys status\n  snowmelt keys rotate")]
pub(crate) struct KeysArgs {
    #[command(subcommand)]
    pub(crate) command: KeysCommand,
}

#[derive(Subcommand, Debug)]
pub(crate) enum KeysCommand {
    Status(KeysStatusArgs),
    Rotate(KeysRotateArgs),
}

/// Show under which keys images are sealed, and which key is current.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:\n  snowmelt keys status\n  snowmelt keys status --all-tenants")]
pub(crate) struct KeysStatusArgs {
    /// Those of every tenant.
    #[arg(long)]
    pub(crate) all_tenants: bool,
}

/// Make a new key for the tenant and seal its images under it.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
No chunk is touched: only manifests are sealed again. The old key stays until you
remove it. Where images fail, run it again with --keep-key.

Examples:
  snowmelt keys rotate
  snowmelt keys rotate --keep-key   after a change of the setting `keys`, or where it was cut off")]
pub(crate) struct KeysRotateArgs {
    /// Those of every tenant.
    #[arg(long)]
    pub(crate) all_tenants: bool,
    /// Make no new key: seal what is not sealed under the current one.
    #[arg(long)]
    pub(crate) keep_key: bool,
}

/// Copy an image to another store, or to another name: only the chunks that are missing there.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Chunks stay encrypted as they are; the manifest is sealed anew for its tenant there.
Settings of S3 and credentials are those of both stores.

Examples:
  snowmelt cp python:3.12 --to s3://images/snowmelt
  snowmelt cp python:3.12 python:stable --to file:///mnt/backup --to-tenant ops")]
pub(crate) struct CpArgs {
    /// Which image.
    #[arg(value_name = "NAME[:TAG]")]
    pub(crate) image: ImageName,
    /// What it is called there; the same where it is left out.
    #[arg(value_name = "NAME2[:TAG]", value_parser = parse_name_there)]
    pub(crate) name: Option<ImageName>,
    /// The store to copy to.
    #[arg(long, value_name = "URL")]
    pub(crate) to: String,
    /// Who owns it there; the same tenant where it is left out.
    #[arg(long, value_name = "NAME")]
    pub(crate) to_tenant: Option<String>,
    /// The key service that seals it there; the same where it is left out.
    #[arg(long, value_name = "SERVICE")]
    pub(crate) to_keys: Option<Service>,
}

/// A name, where one may well think that a store is asked for.
fn parse_name_there(text: &str) -> Result<ImageName, String> {
    let is_store = text.contains("://") || text.starts_with(['/', '.']);
    text.parse().map_err(
        |error: snowmelt_store::Error| {
            if is_store { format!("that is a store: say --to {text}") } else { error.to_string() }
        },
    )
}

/// Read every chunk of all images back from the store and check it. Needs no keys.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Each chunk is read once, however many images have it. Exits with 1 where anything is
missing or damaged.

Examples:
  snowmelt scrub
  snowmelt scrub --all-tenants --bandwidth 50MiB")]
pub(crate) struct ScrubArgs {
    /// Those of every tenant.
    #[arg(long)]
    pub(crate) all_tenants: bool,
    /// How much is read in a second at most.
    #[arg(long, value_name = "SIZE", value_parser = bandwidth)]
    pub(crate) bandwidth: Option<Size>,
}

/// A size over zero.
fn bandwidth(text: &str) -> Result<Size, String> {
    match text.parse()? {
        Size(0) => Err("nothing can be read in no bytes a second".into()),
        size => Ok(size),
    }
}
