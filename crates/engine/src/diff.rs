//! Unified diffs: from text to what is to be done to which file.
//!
//! No crate is used: those that parse and apply unified diffs say that a hunk failed, and neither where
//! nor what was found there instead.

use std::borrow::Cow;

use crate::error::WorkspaceError;

/// What a diff says of one file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct FileDiff<'a> {
    /// The path before; `None` for `/dev/null`.
    pub(crate) old: Option<String>,
    /// The path afterwards; `None` for `/dev/null`.
    pub(crate) new: Option<String>,
    pub(crate) hunks: Vec<Hunk<'a>>,
    /// Whether a file that is made may be executed.
    pub(crate) is_executable: bool,
    /// The line of the diff at which this begins, from 1.
    pub(crate) line: usize,
}

/// Lines to be found, and what to put in their place.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Hunk<'a> {
    /// The line of the diff that holds the header, from 1.
    pub(crate) line: usize,
    /// Where it begins in the file before, from 1; without lines there, the line behind which.
    pub(crate) old_start: usize,
    pub(crate) old_len: usize,
    pub(crate) lines: Vec<HunkLine<'a>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HunkLine<'a> {
    pub(crate) kind: LineKind,
    /// With its line ending, unless the file ends without one.
    pub(crate) text: Cow<'a, str>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LineKind {
    Context,
    Removed,
    Added,
}

/// Reads a diff.
///
/// Text before the first file's header is passed over, as `patch` does: it may be a mail or a commit's
/// message. Behind it every line must be understood, so that nothing is left out silently.
pub(crate) fn parse(text: &str, strip: Option<u32>) -> Result<Vec<FileDiff<'_>>, WorkspaceError> {
    let mut parser = Parser { lines: text.split_inclusive('\n').collect(), at: 0, strip };
    let mut files = Vec::new();
    let mut git: Option<GitHeader<'_>> = None;
    while let Some(line) = parser.peek() {
        if let Some(names) = line.strip_prefix("diff --git ") {
            if let Some(header) = git.take() {
                files.extend(header.without_content(strip)?);
            }
            git = Some(GitHeader::new(parser.at + 1, names.trim_end()));
            parser.at += 1;
        } else if line.starts_with("--- ") && parser.next_begins("+++ ") {
            let header = git.take();
            files.push(parser.file(header.is_some_and(|header| header.is_executable))?);
        } else {
            parser.between(line, git.as_mut(), files.is_empty())?;
        }
    }
    if let Some(header) = git.take() {
        files.extend(header.without_content(strip)?);
    }
    if files.is_empty() {
        return Err(bad(1, "begins no unified diff: a file needs `--- ` and `+++ ` lines"));
    }
    Ok(files)
}

struct Parser<'a> {
    lines: Vec<&'a str>,
    at: usize,
    strip: Option<u32>,
}

/// What git says of a file before its content.
struct GitHeader<'a> {
    line: usize,
    /// Both names, if they are equally long: only then is it clear where the second begins.
    names: Option<(&'a str, &'a str)>,
    is_executable: bool,
    is_new: bool,
    is_deleted: bool,
}

impl<'a> GitHeader<'a> {
    fn new(line: usize, names: &'a str) -> GitHeader<'a> {
        let half = names.len().saturating_sub(1) / 2;
        let names = names.get(..half).zip(names.get(half..).and_then(|new| new.strip_prefix(' ')));
        GitHeader { line, names, is_executable: false, is_new: false, is_deleted: false }
    }

    /// A file that is made or removed empty has no hunks, and no lines with its names.
    fn without_content(self, strip: Option<u32>) -> Result<Option<FileDiff<'a>>, WorkspaceError> {
        let line = self.line;
        if !self.is_new && !self.is_deleted {
            return Ok(None);
        }
        let unclear = || bad(line, "makes or removes an empty file, whose name is not clear");
        let (old, new) = self.names.ok_or_else(unclear)?;
        let (old, new) = (header_path(old, line)?, header_path(new, line)?);
        let strip = strip.unwrap_or_else(|| names_before(&old, &new));
        let name = old.map(|path| stripped(&path, strip, line)).transpose()?;
        if name != new.map(|path| stripped(&path, strip, line)).transpose()? {
            return Err(unclear());
        }
        let (old, new) = if self.is_new { (None, name) } else { (name, None) };
        let hunks = Vec::new();
        Ok(Some(FileDiff { old, new, hunks, is_executable: self.is_executable, line }))
    }
}

impl<'a> Parser<'a> {
    fn peek(&self) -> Option<&'a str> {
        self.lines.get(self.at).copied()
    }

    fn next_begins(&self, with: &str) -> bool {
        self.lines.get(self.at + 1).is_some_and(|line| line.starts_with(with))
    }

    /// A line outside of hunks that is not the header of a file.
    fn between(
        &mut self,
        line: &str,
        git: Option<&mut GitHeader<'a>>,
        is_first: bool,
    ) -> Result<(), WorkspaceError> {
        const HARMLESS: [&str; 6] = ["diff ", "index ", "Index: ", "====", "Only in ", "-- "];
        const REFUSED: [&str; 8] = [
            "rename ",
            "copy ",
            "old mode ",
            "new mode ",
            "similarity ",
            "dissimilarity ",
            "Binary files ",
            "GIT binary patch",
        ];
        let number = self.at + 1;
        self.at += 1;
        let is_prose = is_first && git.is_none();
        if line.starts_with("@@ ") {
            return Err(bad(number, "begins a hunk, and no file's header is before it"));
        }
        if is_prose {
            return Ok(());
        }
        if REFUSED.iter().any(|word| line.starts_with(word)) {
            let problem = "asks for a rename, a copy, a change of mode or a binary file, which \
                           cannot be applied: write that file instead";
            return Err(bad(number, problem));
        }
        if let Some(header) = git {
            if let Some(mode) = git_mode(line).filter(|mode| !mode.starts_with("100")) {
                let what = match mode {
                    "120000" => "a symbolic link",
                    "160000" => "a submodule",
                    _ => "no regular file",
                };
                let problem = format!(
                    "is of {what} (git's mode {mode}), and only regular files are patched: leave \
                     that part out"
                );
                return Err(bad(number, problem));
            }
            if let Some(mode) = line.strip_prefix("new file mode ") {
                header.is_new = true;
                header.is_executable = mode.trim_end() == "100755";
                return Ok(());
            }
            if line.starts_with("deleted file mode ") {
                header.is_deleted = true;
                return Ok(());
            }
        }
        // Behind its last hunk a patch that was mailed has git's version, below a line `-- `.
        let is_signature = number >= 2 && self.lines[number - 2].trim_end() == "--";
        if line.trim().is_empty() || is_signature || HARMLESS.iter().any(|w| line.starts_with(w)) {
            return Ok(());
        }
        Err(bad(
            number,
            "is neither part of a hunk nor the header of a file: compare the numbers in the \
             hunk's header with its lines",
        ))
    }

    fn file(&mut self, is_executable: bool) -> Result<FileDiff<'a>, WorkspaceError> {
        let line = self.at + 1;
        let is_crlf = self.lines[self.at].ends_with("\r\n");
        let old = header_path(&self.lines[self.at][4..], line)?;
        let new = header_path(&self.lines[self.at + 1][4..], line + 1)?;
        let strip = self.strip.unwrap_or_else(|| names_before(&old, &new));
        let old = old.map(|path| stripped(&path, strip, line)).transpose()?;
        let new = new.map(|path| stripped(&path, strip, line + 1)).transpose()?;
        match (&old, &new) {
            (None, None) => return Err(bad(line, "names no file: both are /dev/null")),
            (Some(old), Some(new)) if old != new => {
                let problem = format!(
                    "names {old:?} and the next one {new:?}: a rename cannot be applied, so both \
                     must be one file"
                );
                return Err(bad(line, problem));
            }
            _ => {}
        }
        self.at += 2;
        let mut hunks = Vec::new();
        while self.peek().is_some_and(|line| line.starts_with("@@ ")) {
            hunks.push(self.hunk(is_crlf)?);
        }
        if hunks.is_empty() {
            return Err(bad(line, "names a file, and no hunk follows"));
        }
        Ok(FileDiff { old, new, hunks, is_executable, line })
    }

    /// `is_crlf`: the diff itself was given line endings of two characters, so they are no part of the
    /// files' lines.
    fn hunk(&mut self, is_crlf: bool) -> Result<Hunk<'a>, WorkspaceError> {
        let line = self.at + 1;
        let header = self.lines[self.at];
        let ranges = ranges(header).ok_or_else(|| {
            bad(line, "is no header of a hunk: it must be like `@@ -12,7 +12,8 @@`")
        })?;
        let [(old_start, old_len), (_, new_len)] = ranges;
        self.at += 1;
        let (mut old_left, mut new_left) = (old_len, new_len);
        let mut lines: Vec<HunkLine<'a>> = Vec::new();
        while old_left > 0 || new_left > 0 {
            let number = self.at + 1;
            let short = || {
                format!(
                    "ends the hunk of line {line} early: {old_left} old and {new_left} new lines \
                         are missing"
                )
            };
            let Some(text) = self.peek() else {
                return Err(bad(number - 1, short()));
            };
            let (kind, rest) = match text.as_bytes()[0] {
                b' ' => (LineKind::Context, &text[1..]),
                b'-' => (LineKind::Removed, &text[1..]),
                b'+' => (LineKind::Added, &text[1..]),
                // The space before an empty line is lost by editors and mailers.
                b'\n' | b'\r' => (LineKind::Context, text),
                b'\\' if self.no_newline(&mut lines) => continue,
                _ => return Err(bad(number, short())),
            };
            let taken = [kind != LineKind::Added, kind != LineKind::Removed].map(usize::from);
            if taken[0] > old_left || taken[1] > new_left {
                let problem = format!("is one line more than the hunk of line {line} says it has");
                return Err(bad(number, problem));
            }
            old_left -= taken[0];
            new_left -= taken[1];
            lines.push(HunkLine { kind, text: whole_line(rest, is_crlf) });
            self.at += 1;
        }
        if self.peek().is_some_and(|text| text.starts_with('\\')) {
            self.no_newline(&mut lines);
        }
        if lines.iter().all(|line| line.kind == LineKind::Context) {
            return Err(bad(line, "begins a hunk that changes nothing"));
        }
        Ok(Hunk { line, old_start, old_len, lines })
    }

    /// `\ No newline at end of file`: the line before has no ending.
    fn no_newline(&mut self, lines: &mut [HunkLine<'a>]) -> bool {
        let Some(last) = lines.last_mut() else {
            return false;
        };
        // A `\r` before it is the file's own: where it is the diff's, `whole_line` took it away.
        if let Some(text) = last.text.strip_suffix('\n') {
            last.text = Cow::Owned(text.to_owned());
        }
        self.at += 1;
        true
    }
}

/// The mode that a line of git's header gives a file: of a file that is made or removed, or behind the
/// hashes of its content.
fn git_mode(line: &str) -> Option<&str> {
    let line = line.trim_end();
    let mode = ["new file mode ", "deleted file mode "].iter().find_map(|w| line.strip_prefix(w));
    mode.or_else(|| line.strip_prefix("index ")?.split_once(' ').map(|(_, mode)| mode))
}

/// A line of a file. The last line of a diff may have lost its ending, which says nothing of the file.
fn whole_line(text: &str, is_crlf: bool) -> Cow<'_, str> {
    match text.strip_suffix("\r\n") {
        Some(line) if is_crlf => Cow::Owned(format!("{line}\n")),
        _ if text.ends_with('\n') => Cow::Borrowed(text),
        _ => Cow::Owned(format!("{text}\n")),
    }
}

/// The numbers of `@@ -1,2 +3,4 @@`: start and length, before and afterwards.
fn ranges(header: &str) -> Option<[(usize, usize); 2]> {
    let rest = header.strip_prefix("@@ -")?;
    let (old, rest) = rest.split_once(" +")?;
    let (new, _) = rest.split_once(" @@")?;
    let range = |text: &str| {
        let (start, len) = text.split_once(',').unwrap_or((text, "1"));
        let number = |text: &str| text.parse().ok().filter(|number| *number <= usize::MAX / 4);
        Some((number(start)?, number(len)?))
    };
    Some([range(old)?, range(new)?])
}

/// The path of a `--- ` or `+++ ` line: without the time behind a tab, and without quotes.
fn header_path(text: &str, line: usize) -> Result<Option<String>, WorkspaceError> {
    let text = text.split('\t').next().unwrap_or_default().trim_end_matches(['\r', '\n']);
    let path = match text.strip_prefix('"').and_then(|text| text.strip_suffix('"')) {
        None => text.to_owned(),
        Some(quoted) => unquoted(quoted)
            .ok_or_else(|| bad(line, "has a quoted path that cannot be read as UTF-8"))?,
    };
    if path.is_empty() {
        return Err(bad(line, "has no path"));
    }
    Ok((path != "/dev/null").then_some(path))
}

/// A path as git quotes it: `\"`, `\\`, `\t`, `\n` and bytes in octal.
fn unquoted(quoted: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = quoted.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'\\' {
            bytes.push(byte);
            continue;
        }
        bytes.push(match rest.next()? {
            b't' => b'\t',
            b'n' => b'\n',
            b'r' => b'\r',
            escaped @ (b'"' | b'\\') => escaped,
            first @ b'0'..=b'3' => {
                let digit = |byte: u8| (b'0'..=b'7').contains(&byte).then(|| byte - b'0');
                (first - b'0') * 64 + digit(rest.next()?)? * 8 + digit(rest.next()?)?
            }
            _ => return None,
        });
    }
    String::from_utf8(bytes).ok()
}

/// How many names to take off where the request does not say: one if it is what git puts there.
fn names_before(old: &Option<String>, new: &Option<String>) -> u32 {
    let is_git =
        |path: &Option<String>, prefix| path.as_ref().is_none_or(|path| path.starts_with(prefix));
    u32::from(is_git(old, "a/") && is_git(new, "b/"))
}

fn stripped(path: &str, names: u32, line: usize) -> Result<String, WorkspaceError> {
    let mut rest = path;
    for _ in 0..names {
        let Some((_, below)) = rest.split_once('/') else {
            let problem = format!(
                "names {path:?}, from which {names} names cannot be taken off: lower `strip`"
            );
            return Err(bad(line, problem));
        };
        rest = below.trim_start_matches('/');
    }
    Ok(rest.to_owned())
}

fn bad(line: usize, problem: impl Into<String>) -> WorkspaceError {
    WorkspaceError::BadPatch { line: line.max(1), problem: problem.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> (usize, String) {
        match parse(text, None).unwrap_err() {
            WorkspaceError::BadPatch { line, problem } => (line, problem),
            other => panic!("{other}"),
        }
    }

    #[test]
    fn names_lose_what_git_puts_before_them() {
        let hunk = "@@ -1 +1 @@\n-a\n+b\n";
        for (old, new, strip, path) in [
            ("a/x/y", "b/x/y", None, "x/y"),
            ("x/y", "x/y", None, "x/y"),
            ("a/x", "a/x", None, "a/x"),
            ("a/x\t2026-01-01 00:00:00", "b/x\t2026-01-01 00:00:01", None, "x"),
            ("\"a/caf\\303\\251\"", "\"b/caf\\303\\251\"", None, "café"),
            ("p/q/x", "p/q/x", Some(2), "x"),
            ("a/x", "a/x", Some(0), "a/x"),
        ] {
            let text = format!("--- {old}\n+++ {new}\n{hunk}");
            let files = parse(&text, strip).unwrap();
            assert_eq!(files[0].old.as_deref(), Some(path), "{old}");
            assert_eq!(files[0].new.as_deref(), Some(path), "{new}");
        }
    }

    #[test]
    fn malformed_diffs_are_refused_with_their_line() {
        let head = "--- a/x\n+++ b/x\n";
        let of_mode = |mode: &str| {
            format!(
                "diff --git a/x b/x\nnew file mode {mode}\nindex 1..2\n--- /dev/null\n+++ b/x\n\
                 @@ -0,0 +1 @@\n+target\n\\ No newline at end of file\n"
            )
        };
        assert!(parse(&of_mode("100644"), None).is_ok());
        for (text, line, part) in [
            (String::new(), 1, "no unified diff"),
            ("just text\n".into(), 1, "no unified diff"),
            ("@@ -1 +1 @@\n-a\n+b\n".into(), 1, "no file's header"),
            (head.into(), 1, "no hunk follows"),
            (format!("{head}@@ -1,x +1 @@\n-a\n+b\n"), 3, "no header of a hunk"),
            (format!("{head}@@ -1,3 +1,3 @@\n a\n-b\n"), 5, "1 old and 2 new lines"),
            (format!("{head}@@ -1,2 +1,2 @@\n a\nb\n"), 5, "1 old and 1 new lines"),
            (format!("{head}@@ -1 +1 @@\n-a\n-b\n"), 5, "one line more"),
            (format!("{head}@@ -1 +1 @@\n-a\n+b\n+c\n"), 6, "neither part of a hunk"),
            (format!("{head}@@ -1 +1 @@\n a\n"), 3, "changes nothing"),
            (format!("{head}@@ -1 +1 @@\n-a\n+b\nsome text\n"), 6, "neither"),
            ("--- a/x\n+++ b/y\n@@ -1 +1 @@\n-a\n+b\n".into(), 1, "rename"),
            ("--- /dev/null\n+++ /dev/null\n@@ -1 +1 @@\n-a\n+b\n".into(), 1, "no file"),
            (of_mode("120000"), 2, "a symbolic link"),
            (of_mode("160000"), 2, "a submodule"),
            (of_mode("100644").replace("1..2", "1..2 120000"), 3, "a symbolic link"),
            (of_mode("100644").replace("1..2", "1..2 160000"), 3, "a submodule"),
            (of_mode("120000").replace("new file", "deleted file"), 2, "a symbolic link"),
            ("diff --git a/x b/y\nrename from x\nrename to y\n".into(), 2, "rename"),
        ] {
            let (found, problem) = refused(&text);
            assert_eq!(found, line, "{text:?}: {problem}");
            assert!(problem.contains(part), "{text:?}: {problem}");
        }
    }

    #[test]
    fn empty_files_of_git_are_made_and_removed() {
        let text = "diff --git a/n b/n\nnew file mode 100755\nindex 000..e69\n\
                    diff --git a/o b/o\ndeleted file mode 100644\nindex e69..000\n";
        let files = parse(text, None).unwrap();
        assert_eq!((&files[0].old, files[0].new.as_deref()), (&None, Some("n")));
        assert!(files[0].is_executable);
        assert_eq!((files[1].old.as_deref(), &files[1].new), (Some("o"), &None));
        for (names, strip, name) in [
            ("a/d/n b/d/n", None, "d/n"),
            ("a/d/n b/d/n", Some(2), "n"),
            ("d/n d/n", None, "d/n"),
            ("a/n a/n", Some(0), "a/n"),
            ("\"a/caf\\303\\251\" \"b/caf\\303\\251\"", None, "café"),
        ] {
            let text = format!("diff --git {names}\nnew file mode 100644\nindex 000..e69\n");
            assert_eq!(parse(&text, strip).unwrap()[0].new.as_deref(), Some(name), "{names}");
        }
        let (line, problem) = refused("diff --git a/n b/other\nnew file mode 100644\n");
        assert!(line == 1 && problem.contains("not clear"), "{problem}");
    }
}
