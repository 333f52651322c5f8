//! Paths: checked on the way in, spelled with `/` on the way out.

use std::path::{Component, Path, PathBuf};

use crate::error::WorkspaceError;
use crate::limits::PATH_BYTES_MAX;

/// A path of a request after its text was checked: relative, without `.` and `..`, without NUL.
///
/// `..` is resolved by the text of the path, as in a URL. What the file system makes of symlinks
/// on the way is checked when the path is opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WorkspacePath {
    text: String,
}

impl WorkspacePath {
    pub(crate) fn parse(given: &str) -> Result<Self, WorkspaceError> {
        let invalid = |problem| WorkspaceError::InvalidPath { path: readable(given, 80), problem };
        if given.is_empty() {
            return Err(invalid("is empty: use \".\" for the root"));
        }
        if given.len() > PATH_BYTES_MAX {
            return Err(invalid("is longer than 4096 bytes: shorten it"));
        }
        if given.contains('\0') {
            return Err(invalid("contains a NUL character: leave it out"));
        }
        let mut names: Vec<&str> = Vec::new();
        for component in Path::new(given).components() {
            let outside = || WorkspaceError::OutsideRoot { path: given.to_owned() };
            match component {
                Component::CurDir => {}
                Component::Normal(name) => names.extend(name.to_str()),
                Component::ParentDir => {
                    names.pop().ok_or_else(outside)?;
                }
                Component::RootDir | Component::Prefix(_) => return Err(outside()),
            }
        }
        Ok(Self { text: names.join("/") })
    }

    /// As [`parse`](Self::parse), of a path that is a file's.
    pub(crate) fn parse_file(given: &str) -> Result<Self, WorkspaceError> {
        let path = Self::parse(given)?;
        if given.ends_with('/') {
            let problem = "ends with a slash, and is to be a file's: leave the slash out";
            return Err(WorkspaceError::InvalidPath { path: readable(given, 80), problem });
        }
        Ok(path)
    }

    /// The path with `/` between names; `.` for the root.
    pub(crate) fn text(&self) -> &str {
        if self.text.is_empty() { "." } else { &self.text }
    }

    /// The path to open; `.` for the root.
    pub(crate) fn as_path(&self) -> &Path {
        Path::new(self.text())
    }

    /// The names of the path; none for the root.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.text.split('/').filter(|name| !name.is_empty())
    }

    /// The directories from the root to the parent of this path, outermost first; the root is the
    /// empty path. None for the root itself.
    pub(crate) fn ancestors(&self) -> Vec<PathBuf> {
        let path = Path::new(&self.text);
        let mut ancestors: Vec<PathBuf> = path.ancestors().skip(1).map(Path::to_owned).collect();
        ancestors.reverse();
        ancestors
    }
}

/// A path found by a walk, for a reply; true if it is not UTF-8 and had to be changed.
pub(crate) fn reply_path(path: &Path) -> (String, bool) {
    let mut text = String::new();
    let mut lossy = false;
    for name in path {
        if !text.is_empty() {
            text.push('/');
        }
        lossy |= name.to_str().is_none();
        text.push_str(&name.to_string_lossy());
    }
    (text, lossy)
}

/// The start of a path that is too strange to be shown whole.
pub(crate) fn readable(given: &str, chars_max: usize) -> String {
    match given.char_indices().nth(chars_max) {
        None => given.to_owned(),
        Some((end, _)) => format!("{}…", &given[..end]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(given: &str) -> String {
        WorkspacePath::parse(given).unwrap().text().to_owned()
    }

    #[test]
    fn harmless_spellings_are_normalised() {
        assert_eq!(text("."), ".");
        assert_eq!(text("./"), ".");
        assert_eq!(text("a//b/./c/"), "a/b/c");
        assert_eq!(text("a/../b"), "b");
        assert_eq!(text("a/.."), ".");
        assert_eq!(text("..a/b.."), "..a/b..");
    }

    #[test]
    fn paths_that_climb_out_are_refused() {
        for given in ["..", "../a", "a/../..", "a/../../b", "/", "/etc/passwd", "./../x"] {
            let error = WorkspacePath::parse(given).unwrap_err();
            assert!(matches!(error, WorkspaceError::OutsideRoot { .. }), "{given}: {error}");
        }
    }

    #[test]
    fn impossible_paths_are_refused() {
        let long = "a/".repeat(3000);
        for given in ["", "a\0b", "\0", long.as_str()] {
            let error = WorkspacePath::parse(given).unwrap_err();
            assert!(matches!(error, WorkspaceError::InvalidPath { .. }), "{error}");
            assert!(error.to_string().len() < 400);
        }
    }

    #[test]
    fn ancestors_go_from_the_root_to_the_parent() {
        let ancestors = |given| WorkspacePath::parse(given).unwrap().ancestors();
        assert_eq!(ancestors("."), Vec::<PathBuf>::new());
        assert_eq!(ancestors("a"), [PathBuf::from("")]);
        assert_eq!(ancestors("a/b"), [PathBuf::from(""), PathBuf::from("a")]);
    }
}
