//! `fs.read`: a range of a file, as text where it is text; and `fs.read.raw`, as bytes.

use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::error::WorkspaceError;
use crate::page::json_bytes;
use crate::types::{Encoding, ReadReply, ReadRequest};
use crate::workspace::Workspace;

impl Workspace {
    /// Reads a range of a regular file.
    ///
    /// The reply takes at most `reply_bytes_max` bytes as compact JSON, escapes included, so it may
    /// be shorter than asked for; it is empty only at the end of the file or if `len_bytes` is 0.
    /// A page of text never splits a character; a page that is not UTF-8, or has a NUL, is base64.
    /// One file may give pages of both kinds; the bytes of all pages together are the file.
    ///
    /// # Errors
    ///
    /// [`WorkspaceError`] of a path that is not a regular file inside the root, an offset behind
    /// its end, or a bound that not even one character fits.
    pub fn read(
        &self,
        request: &ReadRequest,
        reply_bytes_max: usize,
    ) -> Result<ReadReply, WorkspaceError> {
        let path = self.file_path(&request.path)?;
        let (mut file, file_bytes) = self.open_file(path.as_path(), path.text())?;
        let offset_bytes = request.offset_bytes;
        if offset_bytes > file_bytes {
            return Err(WorkspaceError::OffsetPastEnd {
                path: path.text().to_owned(),
                offset_bytes,
                total_bytes: file_bytes,
            });
        }
        // No encoding makes bytes fewer, so more than this cannot fit.
        let bound = u64::try_from(reply_bytes_max).unwrap_or(u64::MAX);
        let wanted = request.len_bytes.unwrap_or(u64::MAX).min(bound);
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(offset_bytes))
            .and_then(|_| file.take(wanted).read_to_end(&mut bytes))
            .map_err(|source| WorkspaceError::from_io(path.text(), source))?;

        // The file may have grown or shrunk since it was opened: believe the read.
        let read_end = offset_bytes + bytes.len() as u64;
        let met_end = (bytes.len() as u64) < wanted;
        let mut reply = ReadReply {
            path: path.text().to_owned(),
            offset_bytes,
            len_bytes: bytes.len() as u64,
            total_bytes: if met_end { read_end } else { file_bytes.max(read_end) },
            encoding: Encoding::Base64,
            content: String::new(),
            end: false,
        };
        // Nothing of this becomes longer below: `base64` and `false` are the longer words.
        let room = reply_bytes_max.checked_sub(json_bytes(&reply));
        let page = room
            .and_then(|room| cut(&bytes, room))
            .ok_or(WorkspaceError::ReplyTooSmall { reply_bytes_max })?;
        reply.len_bytes = page.len_bytes as u64;
        reply.end = offset_bytes + reply.len_bytes >= reply.total_bytes;
        reply.encoding = page.encoding;
        reply.content = page.content;
        Ok(reply)
    }
}

impl Workspace {
    /// Opens a regular file to read a range of it as bytes: which file, and how many bytes of the range
    /// there are now.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read), and [`WorkspaceError::TooLong`] for more than `reply_bytes_max` bytes.
    pub fn open_range(
        &self,
        request: &ReadRequest,
        reply_bytes_max: usize,
    ) -> Result<OpenRange, WorkspaceError> {
        let path = self.file_path(&request.path)?;
        let (file, total_bytes) = self.open_file(path.as_path(), path.text())?;
        let offset_bytes = request.offset_bytes;
        let path = path.text().to_owned();
        if offset_bytes > total_bytes {
            return Err(WorkspaceError::OffsetPastEnd { path, offset_bytes, total_bytes });
        }
        let asked_bytes = request.len_bytes.unwrap_or(u64::MAX);
        let range = OpenRange { file, path, offset_bytes, asked_bytes, reply_bytes_max };
        range.len_now(total_bytes)?;
        Ok(range)
    }
}

/// A range of a file that is open, to be read as bytes.
#[derive(Debug)]
pub struct OpenRange {
    file: File,
    path: String,
    offset_bytes: u64,
    asked_bytes: u64,
    reply_bytes_max: usize,
}

impl OpenRange {
    /// How many bytes the range has now: what was asked for, or what there is up to the end of the file.
    ///
    /// # Errors
    ///
    /// [`WorkspaceError::TooLong`], or the failure of the machine.
    pub fn len_bytes(&self) -> Result<usize, WorkspaceError> {
        let metadata = self.file.metadata();
        self.len_now(metadata.map_err(|e| WorkspaceError::from_io(&self.path, e))?.len())
    }

    fn len_now(&self, total_bytes: u64) -> Result<usize, WorkspaceError> {
        let len_bytes = total_bytes.saturating_sub(self.offset_bytes).min(self.asked_bytes);
        usize::try_from(len_bytes).ok().filter(|len| *len <= self.reply_bytes_max).ok_or_else(
            || {
                let path = self.path.clone();
                WorkspaceError::TooLong { path, len_bytes, reply_bytes_max: self.reply_bytes_max }
            },
        )
    }

    /// Reads the range into `room`. [`Filled::All`] tells how many bytes of `room` it takes: fewer than
    /// [`len_bytes`](Self::len_bytes) said if the file shrank meanwhile.
    ///
    /// # Errors
    ///
    /// [`WorkspaceError::Cancelled`] once `stop` says so, or the failure of the machine.
    pub fn fill(
        &mut self,
        room: &mut [u8],
        stop: &dyn Fn() -> bool,
    ) -> Result<Filled, WorkspaceError> {
        const PART_BYTES: usize = 1024 * 1024;
        let failed = |source| WorkspaceError::from_io(&self.path, source);
        self.file.seek(SeekFrom::Start(self.offset_bytes)).map_err(failed)?;
        let mut filled = 0;
        while filled < room.len() {
            if stop() {
                return Err(WorkspaceError::Cancelled);
            }
            let end = room.len().min(filled + PART_BYTES);
            match self.file.read(&mut room[filled..end]) {
                Ok(0) => return Ok(Filled::All(filled)),
                Ok(read) => filled += read,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(failed(error)),
            }
        }
        if filled as u64 == self.asked_bytes {
            return Ok(Filled::All(filled));
        }
        // The room is full, and nothing says yet that the file ends here.
        match self.file.read(&mut [0]) {
            Ok(0) => Ok(Filled::All(filled)),
            Ok(_) => Ok(Filled::Grew),
            Err(error) => Err(failed(error)),
        }
    }

    /// The file grew each time it was read.
    #[must_use]
    pub fn unsteady(&self) -> WorkspaceError {
        WorkspaceError::Unsteady { path: self.path.clone() }
    }
}

/// What [`OpenRange::fill`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filled {
    /// The whole range, in so many bytes.
    All(usize),
    /// The range has become longer than the room.
    Grew,
}

/// The first bytes of a range, encoded.
#[derive(Debug, PartialEq, Eq)]
struct Cut {
    len_bytes: usize,
    encoding: Encoding,
    content: String,
}

/// Encodes as many bytes as fit `room` bytes of a JSON string; nothing if not even one fits.
///
/// - As far as the bytes are text, a page of text that ends on a character.
/// - If what is not text would fit the same page, the page is base64: binary files are not chopped
///   at each byte that is not text.
/// - If only an incomplete character is left at the end, the page ends before it; if there is
///   nothing else, the page is its bytes in base64.
fn cut(bytes: &[u8], room: usize) -> Option<Cut> {
    let (text, rest) = leading_text(bytes);
    let fitting = fitting_prefix(text, room);
    let is_text_page = match rest {
        Rest::Nothing => fitting == text.len() || fitting > 0,
        Rest::Incomplete => fitting > 0,
        Rest::Binary => fitting > 0 && fitting < text.len(),
    };
    if is_text_page {
        let content = text[..fitting].to_owned();
        return Some(Cut { len_bytes: fitting, encoding: Encoding::Utf8, content });
    }
    if rest == Rest::Nothing {
        return None;
    }
    let mut len_bytes = bytes.len().min(room / 4 * 3);
    if len_bytes < bytes.len() {
        len_bytes -= incomplete_tail(&bytes[..len_bytes]);
    }
    let content = STANDARD.encode(&bytes[..len_bytes]);
    (len_bytes > 0).then_some(Cut { len_bytes, encoding: Encoding::Base64, content })
}

/// What follows the text at the start of a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rest {
    Nothing,
    /// The first bytes of a character whose others are not in the range.
    Incomplete,
    /// Bytes that are not UTF-8, or a NUL.
    Binary,
}

fn leading_text(bytes: &[u8]) -> (&str, Rest) {
    let before_nul = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    let candidate = &bytes[..before_nul];
    let (text, incomplete) = match std::str::from_utf8(candidate) {
        Ok(text) => (text, false),
        Err(error) => {
            let valid = &candidate[..error.valid_up_to()];
            (std::str::from_utf8(valid).unwrap_or_default(), error.error_len().is_none())
        }
    };
    let rest = if text.len() == bytes.len() {
        Rest::Nothing
    } else if incomplete && before_nul == bytes.len() {
        Rest::Incomplete
    } else {
        Rest::Binary
    };
    (text, rest)
}

/// The length of the longest prefix whose JSON string takes at most `room` bytes, in bytes.
fn fitting_prefix(text: &str, room: usize) -> usize {
    let mut used = 0;
    for (start, character) in text.char_indices() {
        used += escaped_bytes(character);
        if used > room {
            return start;
        }
    }
    text.len()
}

/// What a character takes inside a JSON string written by `serde_json`, in bytes.
fn escaped_bytes(character: char) -> usize {
    match character {
        '"' | '\\' | '\n' | '\r' | '\t' | '\u{8}' | '\u{c}' => 2,
        '\u{0}'..='\u{1f}' => 6,
        _ => character.len_utf8(),
    }
}

/// How many bytes at the end begin a character without completing it: 0 to 3. Never all of them.
fn incomplete_tail(bytes: &[u8]) -> usize {
    (1..=3)
        .filter(|len| *len < bytes.len())
        .find(|len| {
            std::str::from_utf8(&bytes[bytes.len() - len..])
                .is_err_and(|error| error.valid_up_to() == 0 && error.error_len().is_none())
        })
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_counted_as_serde_json_writes_them() {
        for code in 0..0x3000_u32 {
            let Some(character) = char::from_u32(code) else {
                continue;
            };
            let json = serde_json::to_string(&character.to_string()).unwrap();
            assert_eq!(escaped_bytes(character), json.len() - 2, "{character:?}");
        }
    }

    #[test]
    fn text_is_cut_between_characters() {
        let page = cut("aé\"b".as_bytes(), 3).unwrap();
        assert_eq!((page.len_bytes, page.content.as_str()), (3, "aé"));
        assert_eq!(cut("aé".as_bytes(), 2).unwrap().len_bytes, 1);
        assert_eq!(cut("é".as_bytes(), 1), None);
        assert_eq!(cut(b"\x01", 5), None);
        assert_eq!(cut(b"", 0).unwrap().encoding, Encoding::Utf8);
    }

    #[test]
    fn what_is_not_text_is_base64() {
        for bytes in [&b"a\xffb"[..], b"a\0b", b"\xc3", b"\xed\xa0\x80"] {
            let page = cut(bytes, 100).unwrap();
            assert_eq!((page.encoding, page.len_bytes), (Encoding::Base64, bytes.len()));
        }
        let page = cut(b"ab\xc3", 100).unwrap();
        assert_eq!((page.encoding, page.len_bytes), (Encoding::Utf8, 2));
        let page = cut(b"abcd\xff", 3).unwrap();
        assert_eq!((page.encoding, page.len_bytes), (Encoding::Utf8, 3));
        assert_eq!(cut(b"\xff\xff", 3), None);
    }

    #[test]
    fn a_binary_page_does_not_split_a_character_it_can_keep() {
        let page = cut(b"\xff\xffabc\xc3\xa9zzz", 8).unwrap();
        assert_eq!((page.encoding, page.len_bytes), (Encoding::Base64, 5));
    }
}
