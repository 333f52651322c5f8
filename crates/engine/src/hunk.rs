//! Hunks onto the lines of a file.

use std::borrow::Cow;

use crate::diff::{Hunk, HunkLine, LineKind};
use crate::error::{HunkFailure, WorkspaceError};
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
/// Where the file ends all its lines with `\r\n`, and the diff has lost that, it gets them, and so does what
/// it adds: see [`has_lost_crlf`].
///
/// `stop` is asked for each hunk, and every few thousand lines while it is looked for.
pub(crate) fn apply(
    path: &str,
    content: &[u8],
    hunks: &[Hunk<'_>],
    stop: &dyn Fn() -> bool,
) -> Result<Applied, WorkspaceError> {
    let lines: Vec<&[u8]> = content.split_inclusive(|byte| *byte == b'\n').collect();
    let is_crlf = lines.iter().any(|line| line.ends_with(b"\n"))
        && lines.iter().all(|line| line.ends_with(b"\r\n") || !line.ends_with(b"\n"));
    let has_lost_crlf = is_crlf && has_lost_crlf(hunks);
    let ending = if is_crlf { "\r\n" } else { "\n" };
    let mut file = File { lines, ending, taken: 0, moved: 0, content: Vec::new() };
    let mut offsets_lines = Vec::new();
    for (index, hunk) in hunks.iter().enumerate() {
        let wanted: Vec<HunkLine<'_>> = match has_lost_crlf {
            true => hunk.lines.iter().map(with_crlf).collect(),
            false => hunk.lines.clone(),
        };
        let found = file.replace(hunk, &wanted, stop)?;
        offsets_lines.push(found.map_err(|differs| {
            let Differs { line, expected, found, file_lines } = differs;
            let (hunk, patch_line) = (index + 1, hunk.line);
            let (path, expected) = (path.to_owned(), expected.as_bytes());
            let bare = |line: &'_ [u8]| line.strip_suffix(b"\n").unwrap_or(line).to_vec();
            let newline_differs = found.is_some_and(|found| bare(found) == bare(expected));
            let shown = |line: &[u8]| match newline_differs && line.ends_with(b"\n") {
                true => readable(line) + "\n",
                false => readable(line),
            };
            let (expected, found) = (shown(expected), found.map(shown));
            let failure = HunkFailure { path, hunk, patch_line, line, expected, found, file_lines };
            WorkspaceError::HunkFailed(Box::new(failure))
        })?);
    }
    let File { lines, taken, mut content, .. } = file;
    lines[taken..].iter().for_each(|line| content.extend_from_slice(line));
    Ok(Applied { content, offsets_lines })
}

/// Whether a diff of a file whose lines all end with `\r\n` was given other endings on its way. If it looks
/// for lines that end otherwise, it could not fit. If it looks for none that end at all, what it adds tells.
fn has_lost_crlf(hunks: &[Hunk<'_>]) -> bool {
    let lines = || hunks.iter().flat_map(|hunk| &hunk.lines).filter(|l| l.text.ends_with('\n'));
    let is_crlf = |line: &HunkLine<'_>| line.text.ends_with("\r\n");
    let mut old = lines().filter(|line| line.kind != LineKind::Added).peekable();
    match old.peek() {
        Some(_) => !old.all(is_crlf),
        None => !lines().any(is_crlf),
    }
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
    ending: &'static str,
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
    /// Of a hunk without old lines: how many the file has, which are too few.
    file_lines: Option<usize>,
}

impl<'a> File<'a> {
    /// Replaces the lines of a hunk; how far from where it says they were, or what differs there.
    fn replace<'b>(
        &mut self,
        hunk: &Hunk<'_>,
        lines: &'b [HunkLine<'_>],
        stop: &dyn Fn() -> bool,
    ) -> Result<Result<i64, Differs<'b>>, WorkspaceError>
    where
        'a: 'b,
    {
        if stop() {
            return Err(WorkspaceError::Cancelled);
        }
        let old: Vec<&str> =
            lines.iter().filter(|l| l.kind != LineKind::Added).map(|l| &*l.text).collect();
        // Without old lines the header names the line behind which the new ones go.
        let says =
            if hunk.old_len == 0 { hunk.old_start } else { hunk.old_start.saturating_sub(1) };
        let expected = says.saturating_add_signed(self.moved as isize).max(self.taken);
        let place = match old.is_empty() {
            true => Some(expected).filter(|place| *place <= self.lines.len()),
            false => self.find(&old, expected, stop)?,
        };
        let Some(place) = place else {
            return Ok(Err(self.differs(&old, expected)));
        };
        self.lines[self.taken..place].iter().for_each(|l| self.content.extend_from_slice(l));
        for line in lines.iter().filter(|line| line.kind != LineKind::Removed) {
            // A line that was the file's last may get company behind it.
            if self.content.last().is_some_and(|last| *last != b'\n') {
                self.content.extend_from_slice(self.ending.as_bytes());
            }
            self.content.extend_from_slice(line.text.as_bytes());
        }
        self.taken = place + old.len();
        self.moved = place as i64 - says as i64;
        Ok(Ok(self.moved))
    }

    /// The nearest place where all of these lines stand, not before what was taken; of two equally near
    /// the later one.
    ///
    /// It takes time for the lines that are looked at and for the hunk's, not for their product (Knuth,
    /// Morris and Pratt's search), so that no patch keeps a thread busy for long.
    fn find(
        &self,
        old: &[&str],
        expected: usize,
        stop: &dyn Fn() -> bool,
    ) -> Result<Option<usize>, WorkspaceError> {
        let stands = |line: &&[u8], old: &&str| *line == old.as_bytes();
        let there = self.lines.get(expected..expected + old.len());
        if there.is_some_and(|lines| lines.iter().zip(old).all(|(line, old)| stands(line, old))) {
            return Ok(Some(expected));
        }
        let from = expected.saturating_sub(HUNK_OFFSET_LINES_MAX).max(self.taken);
        let to = (expected + HUNK_OFFSET_LINES_MAX + old.len()).min(self.lines.len());
        let Some(lines) = self.lines.get(from..to).filter(|lines| lines.len() >= old.len()) else {
            return Ok(None);
        };
        let borders = borders(old, stop)?;
        let (mut nearest, mut matched) = (None, 0);
        for (index, line) in lines.iter().enumerate() {
            look(index, stop)?;
            while matched > 0 && (matched == old.len() || !stands(line, &old[matched])) {
                matched = borders[matched - 1];
            }
            matched += usize::from(stands(line, &old[matched]));
            if matched == old.len() {
                let place = from + index + 1 - matched;
                let is_nearer = |near: usize| place.abs_diff(expected) <= expected.abs_diff(near);
                if nearest.is_none_or(is_nearer) {
                    nearest = Some(place);
                }
            }
        }
        Ok(nearest)
    }

    /// Compares with the place at which a hunk was expected.
    fn differs<'b>(&self, old: &[&'b str], expected: usize) -> Differs<'b>
    where
        'a: 'b,
    {
        for (index, text) in old.iter().enumerate() {
            let found = self.lines.get(expected + index).copied();
            if found != Some(text.as_bytes()) {
                let line = expected + index + 1;
                return Differs { line, expected: text, found, file_lines: None };
            }
        }
        // Only a hunk without old lines comes here: there is no such line to put it behind.
        let file_lines = Some(self.lines.len());
        Differs { line: expected, expected: "", found: None, file_lines }
    }
}

/// For each line: how many of the lines up to it are also the first ones, at most all but one.
fn borders(lines: &[&str], stop: &dyn Fn() -> bool) -> Result<Vec<usize>, WorkspaceError> {
    let mut borders = vec![0; lines.len()];
    let mut matched = 0;
    for index in 1..lines.len() {
        look(index, stop)?;
        while matched > 0 && lines[index] != lines[matched] {
            matched = borders[matched - 1];
        }
        matched += usize::from(lines[index] == lines[matched]);
        borders[index] = matched;
    }
    Ok(borders)
}

/// Ends the work, when it is to stop, at one line of some thousands.
fn look(line: usize, stop: &dyn Fn() -> bool) -> Result<(), WorkspaceError> {
    const LINES: usize = 4096;
    match line % LINES == LINES - 1 && stop() {
        true => Err(WorkspaceError::Cancelled),
        false => Ok(()),
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
        applied_to(content, &parse(&text, None).unwrap()[0].hunks)
    }

    fn applied_to(content: &[u8], hunks: &[Hunk<'_>]) -> Result<Applied, Box<HunkFailure>> {
        apply("x", content, hunks, &|| false).map_err(|error| match error {
            WorkspaceError::HunkFailed(failure) => failure,
            other => panic!("{other}"),
        })
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
    fn long_hunk_of_equal_lines_takes_time_for_its_lines_and_stops_when_told() {
        let (file, lines) = ("x\n".repeat(2_000_000), 1_000_000);
        let hunk =
            format!("@@ -5000,{0} +5000,{lines} @@\n{1}-y\n", lines + 1, " x\n".repeat(lines));
        let begun = std::time::Instant::now();
        let failure = patched(file.as_bytes(), &hunk).unwrap_err();
        assert_eq!((failure.line, failure.expected.as_str()), (5000 + lines, "y"));
        assert!(begun.elapsed().as_secs() < 5, "{:?}", begun.elapsed());

        let text = format!("--- a/x\n+++ b/x\n{hunk}");
        let hunks = &parse(&text, None).unwrap()[0].hunks;
        let looks = std::cell::Cell::new(0);
        let stop = || looks.replace(looks.get() + 1) == 10;
        let stopped = apply("x", file.as_bytes(), hunks, &stop).unwrap_err();
        assert!(matches!(stopped, WorkspaceError::Cancelled), "{stopped}");
        assert_eq!(looks.get(), 11);
    }

    #[test]
    fn nearest_place_counts_and_of_two_equally_near_the_later_one() {
        let hunk = "@@ -6,2 +6,2 @@\n a\n-a\n+b\n";
        for (file, offset) in [
            ("a\na\n-\n-\n-\n-\n-\n-\na\na\n", 3),
            ("-\na\na\n-\n-\n-\n-\n-\n-\na\na\n", 4),
            ("-\na\na\n-\n-\n-\n-\n-\n-\n-\na\na\n", -4),
            ("-\n-\n-\na\na\na\n-\n-\n-\n-\n", -1),
        ] {
            assert_eq!(patched(file.as_bytes(), hunk).unwrap().offsets_lines, [offset], "{file:?}");
        }
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
        assert_eq!(applied_to(b"a\nb\n", hunks).unwrap().content, b"a\nB\nC\n");
        assert_eq!(applied_to(b"a\r\nb\r\n", hunks).unwrap().content, b"a\r\nB\r\nC\r\n");
    }

    #[test]
    fn missing_newline_at_the_end_is_kept_made_and_removed() {
        let none = "\\ No newline at end of file\n";
        let kept = format!("@@ -1,2 +1,2 @@\n-a\n+A\n b\n{none}");
        assert_eq!(patched(b"a\nb", &kept).unwrap().content, b"A\nb");
        let failure = patched(b"a\nb\n", &kept).unwrap_err();
        assert_eq!(failure.line, 2, "the file ends with a newline, and the patch says not");
        assert_eq!((failure.expected.as_str(), failure.found.as_deref()), ("b", Some("b\n")));
        let sentence = failure.to_string();
        assert!(sentence.ends_with("should be \"b\" without a newline, and has one"), "{sentence}");
        let failure = patched(b"a\nb", "@@ -1,2 +1,2 @@\n-a\n+A\n b\n").unwrap_err();
        let sentence = failure.to_string();
        assert!(sentence.ends_with("should be \"b\" with a newline, and has none"), "{sentence}");
        let made = format!("@@ -1 +1 @@\n-a\n{none}+a\n");
        assert_eq!(patched(b"a", &made).unwrap().content, b"a\n");
        let removed = format!("@@ -1 +1 @@\n-a\n+a\n{none}");
        assert_eq!(patched(b"a\n", &removed).unwrap().content, b"a");
    }

    #[test]
    fn carriage_return_of_the_last_line_is_kept() {
        let none = "\\ No newline at end of file\n";
        let added = format!("@@ -1 +1,2 @@\n a\n+b\r\n{none}");
        assert_eq!(patched(b"a\n", &added).unwrap().content, b"a\nb\r");
        let context = format!("@@ -1,2 +1,2 @@\n-a\n+A\n b\r\n{none}");
        assert_eq!(patched(b"a\nb\r", &context).unwrap().content, b"A\nb\r");
    }

    #[test]
    fn line_endings_of_the_file_are_kept_where_a_hunk_looks_for_none() {
        let insert = "@@ -1,0 +2 @@\n+new\n";
        assert_eq!(patched(b"a\r\nb\r\n", insert).unwrap().content, b"a\r\nnew\r\nb\r\n");
        assert_eq!(patched(b"a\nb\n", insert).unwrap().content, b"a\nnew\nb\n");
        let behind = "@@ -2,0 +3 @@\n+new\n";
        assert_eq!(patched(b"a\r\nb", behind).unwrap().content, b"a\r\nb\r\nnew\r\n");
        let last = "@@ -2 +2,2 @@\n-b\n\\ No newline at end of file\n+b\n+new\n";
        assert_eq!(patched(b"a\r\nb", last).unwrap().content, b"a\r\nb\r\nnew\r\n");
    }

    fn text() -> impl Strategy<Value = String> {
        let line = prop_oneof!["[ab]{0,2}", "[a-z \\t+@\\\\-]{0,12}", Just("@@ -1 +1 @@".into())];
        let ending = prop_oneof![8 => Just("\n"), 1 => Just("\r\n")];
        let lines = prop::collection::vec((line, ending), 0..40);
        (lines, any::<bool>()).prop_map(|(lines, ends)| {
            let text: String = lines.iter().flat_map(|(line, end)| [line, *end]).collect();
            if ends { text } else { text.strip_suffix('\n').unwrap_or(&text).to_owned() }
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
            // Without a line to look for, a diff that adds other endings to such a file has lost them.
            let is_crlf = old.contains('\n') && !old.replace("\r\n", "").contains('\n');
            prop_assume!(!(is_crlf && has_lost_crlf(&files[0].hunks)));
            let applied = applied_to(old.as_bytes(), &files[0].hunks).unwrap();
            prop_assert_eq!(String::from_utf8(applied.content).unwrap(), new, "{}", diff);
        }

        /// No text makes the parser panic, and what it takes applies or is refused.
        #[test]
        fn any_text_is_a_diff_or_is_refused(diff in "[-+ @\\\\a\n0-9,]{0,200}", file in text()) {
            let diff = format!("--- a\n+++ a\n@@ -1,2 +1,2 @@\n{diff}");
            if let Ok(files) = parse(&diff, None) {
                let _ = applied_to(file.as_bytes(), &files[0].hunks);
            }
        }
    }
}
