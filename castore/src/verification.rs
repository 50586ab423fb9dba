//! What was read and is not what its digest or checksum says, counted by where it came from. What comes
//! of it is the affair of who has read it.

use cairn_telemetry::inventory::{Source, VERIFICATION_FAILURES};

/// Something wrong came from a store, of which this is the URL.
pub(crate) fn failed_far(url: &str) {
    failed(if url.starts_with("objectstore+") { Source::ObjectStore } else { Source::Peer });
}

/// Something wrong came from here.
pub(crate) fn failed(source: Source) {
    VERIFICATION_FAILURES.add_at(source as usize, 1);
}
