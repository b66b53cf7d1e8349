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

mod buffers;
mod error;
mod local;
mod name;
mod publish;
pub mod readback;
mod records;
mod retry;
mod store;
mod usage;

pub use error::Error;
pub use name::ImageName;
pub use publish::{BlockSource, PublishOptions, PublishProgress, Published, publish};
pub use records::{ImageMetadata, NameRecord};
pub use store::{ListedName, PutOutcome, Store, StoreOptions};
pub use usage::{ImageUsage, Usage, usage};

/// The root that images are published under unless another is asked for.
pub const DEFAULT_ROOT: &str = "main";
