//! NARs, Nix's archives: a tree as one canonical stream of bytes. Written, hashed and read here.

/// Why a NAR could not be written, read or hashed.
#[derive(Debug, thiserror::Error)]
pub enum NarError {
    /// The bytes are no NAR.
    #[error("not a NAR: {what} at byte {offset}")]
    Format {
        /// What is wrong.
        what: String,
        /// Where, from the start of the NAR.
        offset: u64,
    },
}
