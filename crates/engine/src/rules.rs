//! Which names a walk passes over: `.gitignore`, `.ignore`, `.git/info/exclude` and the user's
//! global ignore file.
//!
//! The globs are the `ignore` crate's. Its own walker is not used, because it opens ignore files
//! and directories by path: it would block on a FIFO that is called `.gitignore`, and follow a
//! directory that is swapped for a symlink out of the root.

use std::io::Read;
use std::path::{Path, PathBuf};

use ignore::Match;
use ignore::gitignore::{Gitignore, GitignoreBuilder};

use crate::limits::IGNORE_FILE_BYTES_MAX;
use crate::workspace::Workspace;

/// The rules in force in the directory that a walk is in, outermost first.
///
/// A nearer rule wins over a farther one, and `.ignore` over `.gitignore` over `exclude` over the
/// global file. A directory that holds `.git` is a repository of its own: the `.gitignore` files
/// above it do not reach into it, as in git.
pub(crate) struct Rules<'a> {
    workspace: &'a Workspace,
    levels: Vec<Level>,
}

/// What the rules say of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// A rule ignores it.
    Ignored,
    /// A rule with `!` keeps it, even if it is hidden.
    Kept,
    /// No rule mentions it.
    Unmentioned,
}

/// Which special names a directory holds, so that only these are opened.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct SpecialNames {
    pub(crate) ignore: bool,
    pub(crate) gitignore: bool,
    pub(crate) git: bool,
}

impl SpecialNames {
    pub(crate) fn note(&mut self, name: &[u8]) {
        match name {
            b".ignore" => self.ignore = true,
            b".gitignore" => self.gitignore = true,
            b".git" => self.git = true,
            _ => {}
        }
    }
}

struct Level {
    ignore: Gitignore,
    gitignore: Gitignore,
    exclude: Gitignore,
    repository: bool,
}

impl<'a> Rules<'a> {
    /// The rules that the given directories set, outermost first.
    pub(crate) fn of(workspace: &'a Workspace, ancestors: &[PathBuf]) -> Self {
        let mut rules = Self { workspace, levels: Vec::new() };
        for directory in ancestors {
            let git = workspace.has(&directory.join(".git"));
            rules.enter(directory, SpecialNames { ignore: true, gitignore: true, git });
        }
        rules
    }

    /// Adds the rules of a directory; the empty path is the root.
    pub(crate) fn enter(&mut self, directory: &Path, special: SpecialNames) {
        let load = |present: bool, name: &str| {
            if present { load(self.workspace, directory, name) } else { Gitignore::empty() }
        };
        let level = Level {
            ignore: load(special.ignore, ".ignore"),
            gitignore: load(special.gitignore, ".gitignore"),
            exclude: load(special.git, ".git/info/exclude"),
            repository: special.git,
        };
        self.levels.push(level);
    }

    /// Takes back the last `enter`.
    pub(crate) fn leave(&mut self) {
        self.levels.pop();
    }

    /// What the rules say of a path, relative to the root.
    pub(crate) fn verdict(&self, path: &Path, is_directory: bool) -> Verdict {
        let mut ignore = Match::None;
        let mut gitignore = Match::None;
        let mut exclude = Match::None;
        let mut in_repository = true;
        for level in self.levels.iter().rev() {
            ignore = ignore.or(level.ignore.matched(path, is_directory));
            if in_repository {
                gitignore = gitignore.or(level.gitignore.matched(path, is_directory));
                exclude = exclude.or(level.exclude.matched(path, is_directory));
            }
            in_repository &= !level.repository;
        }
        let global = self.workspace.global_ignore().matched(path, is_directory);
        match ignore.or(gitignore).or(exclude).or(global) {
            Match::Ignore(_) => Verdict::Ignored,
            Match::Whitelist(_) => Verdict::Kept,
            Match::None => Verdict::Unmentioned,
        }
    }
}

/// Reads one ignore file. What is missing, not a regular file or not a glob has no effect, as in
/// git.
fn load(workspace: &Workspace, directory: &Path, name: &str) -> Gitignore {
    let Ok((file, _)) = workspace.open_file(&directory.join(name), name) else {
        return Gitignore::empty();
    };
    let mut bytes = Vec::new();
    if file.take(IGNORE_FILE_BYTES_MAX).read_to_end(&mut bytes).is_err() {
        return Gitignore::empty();
    }
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
    let mut builder = GitignoreBuilder::new(directory);
    for line in bytes.split(|byte| *byte == b'\n') {
        if let Ok(line) = std::str::from_utf8(line) {
            // A line that is not a glob is passed over, and the others still count.
            let _ = builder.add_line(None, line);
        }
    }
    builder.build().unwrap_or_else(|_| Gitignore::empty())
}
