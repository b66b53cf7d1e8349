/// Why a tree cannot become an image. Nodes are named by their path.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// The tree or the placement is not well formed, or holds what ext4 cannot.
    #[error("{path}: {what}")]
    BadNode {
        /// The path of the node, with bytes that are not UTF-8 replaced.
        path: String,
        /// What is wrong with it.
        what: String,
    },
    /// The whole is larger than ext4 with 4 KiB blocks allows, or the options are out of range.
    #[error("{0}")]
    BadImage(String),
}
