//! Packages: zip archives with a function's code.
//!
//! A package is kept as it came, since clients may fetch it, and becomes a layer over the image of its runtime: an archive of tar with the
//! package's files in `/var/task` and nothing else there. Packages come from strangers. What tools that read zip archives do not agree
//! about, and what reaches beyond the folder, is refused; what is unpacked is bounded before it is there.

mod kept;
mod layer;

pub(crate) use self::kept::{Packages, Turn};
pub(crate) use self::layer::write_layer;

/// Bytes of a package that comes by the API, as in Lambda: 50 MB.
pub(crate) const MOST_PACKAGE: usize = 50 << 20;
