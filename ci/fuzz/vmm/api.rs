//! The HTTP interface, as a client of its socket sees it.

use vmm_machine::api::testing::{Fake, converse};

/// Bytes of a connection, of which the first says into how many pieces the others are cut.
pub(crate) fn api(bytes: &[u8]) {
    let Some((cuts, rest)) = bytes.split_first() else { return };
    let size = rest.len().div_ceil(usize::from(cuts % 8) + 1).max(1);
    let pieces: Vec<&[u8]> = rest.chunks(size).collect();
    let answers = converse(&pieces, &Fake::default());
    assert!(answers.is_empty() || answers.starts_with(b"HTTP/1.1 "), "answers are HTTP");
}
