//! Cursors: where a listing or a search goes on, with no state kept between calls.
//!
//! A cursor is the URL-safe base64 of: one byte for the method, the [`Fingerprint`] of the request
//! (4 bytes, little-endian), a line number (8 bytes, little-endian) and the path of the last item
//! with `/` between its names, in the file system's own bytes. It is a position and nothing more:
//! a forged one selects where to start in a tree that its maker may read anyway.

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::error::WorkspaceError;
use crate::limits::CURSOR_BYTES_MAX;

const HEAD_BYTES: usize = 1 + 4 + 8;

/// Which method a cursor belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Method {
    List = b'l',
    Search = b's',
}

/// A position in the sorted tree: an item, and for a search a line in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Position {
    /// The names from the root to the item.
    pub(crate) names: Vec<Vec<u8>>,
    /// The last line that was returned; 0 in a listing.
    pub(crate) line_number: u64,
}

/// A short hash of what must stay the same while paging, so that a cursor from another request is
/// refused and does not give wrong pages. It guards against mistakes, not against attackers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fingerprint(u32);

impl Fingerprint {
    /// Hashes the parts with FNV-1a; each part is closed by a byte that UTF-8 never has.
    pub(crate) fn of(parts: &[&[u8]]) -> Self {
        let mut hash: u32 = 0x811c_9dc5;
        for part in parts {
            for byte in part.iter().chain(&[0xff]) {
                hash = (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
            }
        }
        Self(hash)
    }
}

pub(crate) fn encode(
    method: Method,
    fingerprint: Fingerprint,
    path: &Path,
    line_number: u64,
) -> String {
    let mut bytes = Vec::with_capacity(HEAD_BYTES + path.as_os_str().len());
    bytes.push(method as u8);
    bytes.extend_from_slice(&fingerprint.0.to_le_bytes());
    bytes.extend_from_slice(&line_number.to_le_bytes());
    for (index, name) in path.iter().enumerate() {
        if index > 0 {
            bytes.push(b'/');
        }
        bytes.extend_from_slice(name.as_encoded_bytes());
    }
    URL_SAFE_NO_PAD.encode(bytes)
}

pub(crate) fn decode(
    method: Method,
    fingerprint: Fingerprint,
    cursor: &str,
) -> Result<Position, WorkspaceError> {
    if cursor.len() > CURSOR_BYTES_MAX {
        return Err(WorkspaceError::BadCursor);
    }
    let bytes = URL_SAFE_NO_PAD.decode(cursor).map_err(|_| WorkspaceError::BadCursor)?;
    let (head, path) = bytes.split_first_chunk::<HEAD_BYTES>().ok_or(WorkspaceError::BadCursor)?;
    let [tag, f0, f1, f2, f3, line @ ..] = *head;
    let names: Vec<Vec<u8>> = path.split(|byte| *byte == b'/').map(<[u8]>::to_vec).collect();
    let belongs = tag == method as u8 && u32::from_le_bytes([f0, f1, f2, f3]) == fingerprint.0;
    if !belongs || names.iter().any(Vec::is_empty) {
        return Err(WorkspaceError::BadCursor);
    }
    Ok(Position { names, line_number: u64::from_le_bytes(line) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_comes_back_as_its_position() {
        let fingerprint = Fingerprint::of(&[b"x"]);
        let cursor = encode(Method::Search, fingerprint, Path::new("a/b c/é"), 77);
        let position = decode(Method::Search, fingerprint, &cursor).unwrap();
        assert_eq!(position.names, [b"a".to_vec(), b"b c".to_vec(), "é".as_bytes().to_vec()]);
        assert_eq!(position.line_number, 77);
    }

    #[test]
    fn a_cursor_of_another_request_is_refused() {
        let fingerprint = Fingerprint::of(&[b"ab", b"c"]);
        let cursor = encode(Method::List, fingerprint, Path::new("a"), 0);
        assert!(decode(Method::Search, fingerprint, &cursor).is_err());
        assert!(decode(Method::List, Fingerprint::of(&[b"a", b"bc"]), &cursor).is_err());
        assert!(decode(Method::List, fingerprint, &cursor[..cursor.len() - 2]).is_err());
        for garbage in ["", "!", "bA", "a/b", &"A".repeat(CURSOR_BYTES_MAX + 1)] {
            let error = decode(Method::List, fingerprint, garbage).unwrap_err();
            assert!(matches!(error, WorkspaceError::BadCursor));
        }
    }
}
