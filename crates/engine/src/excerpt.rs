//! The part of a line that a match shows.

/// A piece of a line around a match.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Excerpt {
    pub(crate) text: String,
    /// Where in the line the text begins, in bytes from 0.
    pub(crate) begin: usize,
    pub(crate) cut: bool,
}

/// Cuts a line to at most `max_bytes` bytes of UTF-8 around the byte at which its match starts.
///
/// A line that fits is whole; a match near the start keeps the start of the line; otherwise an
/// eighth of the excerpt leads up to the match.
pub(crate) fn excerpt(line: &[u8], match_start: usize, max_bytes: usize) -> Excerpt {
    let lead = max_bytes / 8;
    let begin = if line.len() <= max_bytes || match_start < max_bytes - lead {
        0
    } else {
        character_start(line, match_start.saturating_sub(lead))
    };
    let end = line.len().min(begin + max_bytes);
    let end = if end < line.len() { character_start(line, end).max(begin) } else { end };
    let mut text = String::from_utf8_lossy(&line[begin..end]).into_owned();
    // A replacement character may be longer than what it replaces.
    let fits = text.len() <= max_bytes;
    if !fits {
        let whole = (0..=max_bytes).rev().find(|index| text.is_char_boundary(*index));
        text.truncate(whole.unwrap_or(0));
    }
    Excerpt { text, begin, cut: begin > 0 || end < line.len() || !fits }
}

/// The start of the UTF-8 character that holds this byte, or the byte itself in what is not UTF-8.
fn character_start(line: &[u8], index: usize) -> usize {
    let is_inside = |index: usize| line.get(index).is_some_and(|byte| byte & 0xc0 == 0x80);
    (index.saturating_sub(3)..=index).rev().find(|index| !is_inside(*index)).unwrap_or(index)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_line_is_whole() {
        let found = excerpt(b"hello", 3, 5);
        assert_eq!(found, Excerpt { text: "hello".into(), begin: 0, cut: false });
        assert_eq!(excerpt(b"", 0, 0), Excerpt { text: String::new(), begin: 0, cut: false });
    }

    #[test]
    fn a_long_line_is_cut_around_its_match() {
        let line: Vec<u8> = (0..100).map(|index| b'a' + index % 26).collect();
        let found = excerpt(&line, 50, 16);
        assert_eq!((found.begin, found.cut, found.text.len()), (48, true, 16));
        assert_eq!(found.text.as_bytes(), &line[48..64]);
        let found = excerpt(&line, 3, 16);
        assert_eq!((found.begin, found.text.as_bytes()), (0, &line[..16]));
    }

    #[test]
    fn characters_are_not_split_and_bad_bytes_stay_within_the_bound() {
        let line = "é".repeat(50);
        for match_start in 0..100 {
            for max_bytes in 0..20 {
                let found = excerpt(line.as_bytes(), match_start, max_bytes);
                assert!(found.text.len() <= max_bytes && !found.text.contains('\u{fffd}'));
            }
        }
        let found = excerpt(&[0xff; 10], 0, 10);
        assert_eq!((found.text.as_str(), found.cut), ("\u{fffd}\u{fffd}\u{fffd}", true));
    }
}
