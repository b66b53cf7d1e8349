//! The origin: chunks, manifests and names on object storage.
//!
//! A [`Store`] lies behind a URL. Everything in it belongs to a *root*, but for names:
//!
//! ```text
//! roots/<root>/chunks/<2 hex>/<64 hex>              ciphertext of a chunk, named by its id; shared by everybody
//! roots/<root>/manifests/<tenant>/<64 hex>          a manifest, named by its id
//! names/<tenant>/<name, '/' as '+'>/<tag>           which manifest a name stands for, as JSON
//! ```
//!
//! [`publish`] turns the bytes of an image into chunks, then puts the manifest, and the name last: whatever dies before
//! leaves only chunks that nobody refers to. Chunks and manifests are never changed once they are there; names are
//! replaced whole. Nothing here needs or sees a chunk's key but [`publish`] and the readers in [`readback`].

mod aws;
mod buffers;
pub mod collect;
#[cfg(test)]
mod conformance;
mod copy;
mod error;
#[cfg(test)]
#[path = "../tests/support/faulty_objects.rs"]
#[allow(clippy::unwrap_used, dead_code, missing_docs, unreachable_pub)]
mod faulty_objects;
#[doc(hidden)]
pub mod fuzz;
mod images;
mod intents;
mod leases;
mod local;
mod location;
mod name;
mod names;
mod objects;
mod publish;
pub mod readback;
mod records;
mod refusal;
mod retry;
mod rewrap;
mod roots;
mod salts;
mod scrub;
mod seen;
mod store;
mod usage;

pub use copy::{Copied, CopyOptions, copy};
pub use error::Error;
pub use images::{ListedImage, each_image};
pub use intents::Intent;
pub use leases::{ImageLease, LEAST_LIFETIME, Lease, MOST_LIFETIME, OwnLease};
pub use location::S3Options;
pub use name::ImageName;
pub use names::ListedName;
pub use publish::{BlockSource, PublishOptions, PublishProgress, Published, publish};
pub use records::{ImageMetadata, NameBinding, NameRecord, SaltLabel};
pub use rewrap::{Rewrapped, rewrap};
pub use roots::{Alarm, Change, CollectorLease, Root, RootState, SaltEpoch, State};
pub use salts::Sharing;
pub use scrub::{ScrubOptions, Scrubbed, scrub};
pub use seen::SeenNames;
pub use store::{PutOutcome, Store, StoreOptions};
pub use usage::{ImageUsage, Usage, usage};

/// The root that a new store begins with.
pub const DEFAULT_ROOT: &str = "main";
