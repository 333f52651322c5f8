//! Hunks onto the lines of a file.

use std::borrow::Cow;

use crate::diff::{Hunk, HunkLine, LineKind};
use crate::error::HunkFailure;
use crate::limits::HUNK_OFFSET_LINES_MAX;

/// The content of a file after a diff.
#[derive(Debug)]
pub(crate) struct Applied {
    pub(crate) content: Vec<u8>,
    /// How far from where it says each hunk was found, in lines.
    pub(crate) offsets_lines: Vec<i64>,
}

/// Applies all hunks to the content of a file, or says which one does not fit.
///
/// A hunk fits where all of its context and of what it removes stands, byte for byte. It is looked for
/// first where it says, moved by as much as the one before it was, and then ever farther away. Nothing of
/// the context is ever left out.
///
/// Where the file ends all its lines with `\r\n`, and the diff looks for lines that end otherwise, so that it
/// cannot fit, it is taken to have lost the file's line endings: it gets them, and so does what it adds.
pub(crate) fn apply(
    path: &str,
    content: &[u8],
    hunks: &[Hunk<'_>],
) -> Result<Applied, Box<HunkFailure>> {
    let lines: Vec<&[u8]> = content.split_inclusive(|byte| *byte == b'\n').collect();
    let is_crlf = lines.iter().any(|line| line.ends_with(b"\n"))
        && lines.iter().all(|line| line.ends_with(b"\r\n") || !line.ends_with(b"\n"));
    let has_lost_crlf = is_crlf
        && hunks.iter().flat_map(|hunk| &hunk.lines).any(|line| {
            let ends = line.text.ends_with('\n') && !line.text.ends_with("\r\n");
            ends && line.kind != LineKind::Added
        });
    let mut file = File { lines, taken: 0, moved: 0, content: Vec::new() };
    let mut offsets_lines = Vec::new();
    for (index, hunk) in hunks.iter().enumerate() {
        let wanted: Vec<HunkLine<'_>> = match has_lost_crlf {
            true => hunk.lines.iter().map(with_crlf).collect(),
            false => hunk.lines.clone(),
        };
        let found = file.replace(hunk, &wanted);
        offsets_lines.push(found.map_err(|differs| {
            let Differs { line, expected, found } = differs;
            let (hunk, patch_line) = (index + 1, hunk.line);
            let (path, expected) = (path.to_owned(), readable(expected.as_bytes()));
            let found = found.map(readable);
            Box::new(HunkFailure { path, hunk, patch_line, line, expected, found })
        })?);
    }
    let File { lines, taken, mut content, .. } = file;
    lines[taken..].iter().for_each(|line| content.extend_from_slice(line));
    Ok(Applied { content, offsets_lines })
}

fn with_crlf<'a>(line: &HunkLine<'a>) -> HunkLine<'a> {
    let text = match line.text.strip_suffix('\n').filter(|text| !text.ends_with('\r')) {
        Some(text) => Cow::Owned(format!("{text}\r\n")),
        None => line.text.clone(),
    };
    HunkLine { kind: line.kind, text }
}

/// A file of which a part was rewritten.
struct File<'a> {
    lines: Vec<&'a [u8]>,
    /// Lines up to here are in `content`, changed or not.
    taken: usize,
    /// How far from where it said the last hunk was found.
    moved: i64,
    content: Vec<u8>,
}

/// The first line that is not what a hunk says.
struct Differs<'a> {
    /// From 1.
    line: usize,
    expected: &'a str,
    found: Option<&'a [u8]>,
}

impl<'a> File<'a> {
    /// Replaces the lines of a hunk; how far from where it says they were.
    fn replace<'b>(
        &mut self,
        hunk: &Hunk<'_>,
        lines: &'b [HunkLine<'_>],
    ) -> Result<i64, Differs<'b>>
    where
        'a: 'b,
    {
        let old: Vec<&str> =
            lines.iter().filter(|l| l.kind != LineKind::Added).map(|l| &*l.text).collect();
        // Without old lines the header names the line behind which the new ones go.
        let says =
            if hunk.old_len == 0 { hunk.old_start } else { hunk.old_start.saturating_sub(1) };
        let expected = says.saturating_add_signed(self.moved as isize).max(self.taken);
        let place = match old.is_empty() {
            true => Some(expected).filter(|place| *place <= self.lines.len()),
            false => self.find(&old, expected),
        };
        let Some(place) = place else {
            return Err(self.differs(lines, &old, expected));
        };
        self.lines[self.taken..place].iter().for_each(|l| self.content.extend_from_slice(l));
        for line in lines.iter().filter(|line| line.kind != LineKind::Removed) {
            // A line that was the file's last may get company behind it.
            if self.content.last().is_some_and(|last| *last != b'\n') {
                self.content.push(b'\n');
            }
            self.content.extend_from_slice(line.text.as_bytes());
        }
        self.taken = place + old.len();
        self.moved = place as i64 - says as i64;
        Ok(self.moved)
    }

    /// The nearest place where all of these lines stand, not before what was taken.
    fn find(&self, old: &[&str], expected: usize) -> Option<usize> {
        let fits = |place: &usize| {
            let lines = self.lines.get(*place..*place + old.len());
            *place >= self.taken
                && lines.is_some_and(|lines| {
                    lines.iter().zip(old).all(|(line, old)| *line == old.as_bytes())
                })
        };
        (0..=HUNK_OFFSET_LINES_MAX).find_map(|distance| {
            let behind = Some(expected + distance).filter(fits);
            behind.or_else(|| expected.checked_sub(distance).filter(fits))
        })
    }

    /// Compares with the place at which a hunk was expected.
    fn differs<'b>(
        &self,
        lines: &'b [HunkLine<'_>],
        old: &[&'b str],
        expected: usize,
    ) -> Differs<'b>
    where
        'a: 'b,
    {
        for (index, text) in old.iter().enumerate() {
            let found = self.lines.get(expected + index).copied();
            if found != Some(text.as_bytes()) {
                return Differs { line: expected + index + 1, expected: text, found };
            }
        }
        // Only a hunk without old lines comes here: there is no such line to put it behind.
        let first = lines.first().map_or("", |line| &*line.text);
        Differs { line: expected, expected: first, found: None }
    }
}

/// A line for an error: without its ending, unless the endings alone differ, and not too long.
fn readable(line: &[u8]) -> String {
    const CHARS_MAX: usize = 120;
    let text = String::from_utf8_lossy(line);
    let text = text.strip_suffix('\n').unwrap_or(&text);
    match text.char_indices().nth(CHARS_MAX) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::diff::parse;

    fn patched(content: &[u8], hunks: &str) -> Result<Applied, Box<HunkFailure>> {
        let text = format!("--- a/x\n+++ b/x\n{hunks}");
        apply("x", content, &parse(&text, None).unwrap()[0].hunks)
    }

    fn numbered(lines: std::ops::Range<usize>) -> String {
        lines.map(|n| format!("line {n}\n")).collect()
    }

    #[test]
    fn hunk_that_moved_is_found_and_the_next_one_is_expected_there() {
        let content = format!("new\nnew\nnew\n{}", numbered(1..60));
        let hunks = "@@ -10,2 +10,2 @@\n line 10\n-line 11\n+LINE 11\n\
                     @@ -50,2 +50,2 @@\n line 50\n-line 51\n+LINE 51\n";
        let applied = patched(content.as_bytes(), hunks).unwrap();
        assert_eq!(applied.offsets_lines, [3, 3]);
        let wanted = content.replace("line 11\n", "LINE 11\n").replace("line 51\n", "LINE 51\n");
        assert_eq!(String::from_utf8(applied.content).unwrap(), wanted);
    }

    #[test]
    fn hunk_that_is_too_far_away_or_differs_in_one_line_of_context_fails() {
        let far = format!("{}{}", "x\n".repeat(HUNK_OFFSET_LINES_MAX + 1), numbered(1..9));
        let hunk = "@@ -1,3 +1,3 @@\n line 1\n-line 2\n+LINE 2\n line 3\n";
        let failure = patched(far.as_bytes(), hunk).unwrap_err();
        assert_eq!((failure.line, failure.expected.as_str()), (1, "line 1"));
        assert_eq!(failure.found.as_deref(), Some("x"));
        let near = far.split_once('\n').unwrap().1;
        assert!(patched(near.as_bytes(), hunk).is_ok(), "one line nearer it is found");

        let failure = patched(b"line 1\nline 2\nline three\n", hunk).unwrap_err();
        assert_eq!((failure.hunk, failure.patch_line, failure.line), (1, 3, 3));
        assert_eq!(failure.found.as_deref(), Some("line three"));
        let failure = patched(b"line 1\nline 2\n", hunk).unwrap_err();
        assert_eq!((failure.line, failure.found), (3, None));
    }

    #[test]
    fn line_endings_of_the_file_are_kept() {
        let hunk = "@@ -1,2 +1,3 @@\n a\n-b\n+B\n+C\n";
        let applied = patched(b"a\r\nb\r\nc\r\n", hunk).unwrap();
        assert_eq!(applied.content, b"a\r\nB\r\nC\r\nc\r\n");
        let with_crlf = "@@ -1,2 +1,2 @@\n a\r\n-b\r\n+B\r\n";
        assert_eq!(patched(b"a\r\nb\r\n", with_crlf).unwrap().content, b"a\r\nB\r\n");
        assert!(patched(b"a\nb\n", with_crlf).is_err(), "the file has other endings");
        // The whole diff got them on its way.
        let sent = format!("--- a/x\n+++ b/x\n{hunk}").replace('\n', "\r\n");
        let hunks = &parse(&sent, None).unwrap()[0].hunks;
        assert_eq!(apply("x", b"a\nb\n", hunks).unwrap().content, b"a\nB\nC\n");
        assert_eq!(apply("x", b"a\r\nb\r\n", hunks).unwrap().content, b"a\r\nB\r\nC\r\n");
    }

    #[test]
    fn missing_newline_at_the_end_is_kept_made_and_removed() {
        let none = "\\ No newline at end of file\n";
        let kept = format!("@@ -1,2 +1,2 @@\n-a\n+A\n b\n{none}");
        assert_eq!(patched(b"a\nb", &kept).unwrap().content, b"A\nb");
        let failure = patched(b"a\nb\n", &kept).unwrap_err();
        assert_eq!(failure.line, 2, "the file ends with a newline, and the patch says not");
        let made = format!("@@ -1 +1 @@\n-a\n{none}+a\n");
        assert_eq!(patched(b"a", &made).unwrap().content, b"a\n");
        let removed = format!("@@ -1 +1 @@\n-a\n+a\n{none}");
        assert_eq!(patched(b"a\n", &removed).unwrap().content, b"a");
    }

    fn text() -> impl Strategy<Value = String> {
        let line = prop_oneof!["[ab]{0,2}", "[a-z \\t+@\\\\-]{0,12}", Just("@@ -1 +1 @@".into())];
        let ending = prop_oneof![8 => Just("\n"), 1 => Just("\r\n")];
        let lines = prop::collection::vec((line, ending), 0..40);
        (lines, any::<bool>()).prop_map(|(lines, ends)| {
            let text: String = lines.iter().flat_map(|(line, end)| [line, *end]).collect();
            if ends { text } else { text.trim_end_matches(['\r', '\n']).to_owned() }
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

        /// A diff of two texts, made by another implementation, turns the first into the second.
        #[test]
        fn diff_made_by_another_applies_to_give_the_second_text(
            (old, new) in (text(), text()),
            context in 0_usize..5,
        ) {
            let mut options = diffy::DiffOptions::new();
            options.set_context_len(context);
            options.set_original_filename("x").set_modified_filename("x");
            let diff = options.create_patch(&old, &new).to_string();
            prop_assume!(old != new);
            let files = parse(&diff, Some(0)).unwrap();
            let applied = apply("x", old.as_bytes(), &files[0].hunks).unwrap();
            prop_assert_eq!(String::from_utf8(applied.content).unwrap(), new, "{}", diff);
        }

        /// No text makes the parser panic, and what it takes applies or is refused.
        #[test]
        fn any_text_is_a_diff_or_is_refused(diff in "[-+ @\\\\a\n0-9,]{0,200}", file in text()) {
            let diff = format!("--- a\n+++ a\n@@ -1,2 +1,2 @@\n{diff}");
            if let Ok(files) = parse(&diff, None) {
                let _ = apply("x", file.as_bytes(), &files[0].hunks);
            }
        }
    }
}
