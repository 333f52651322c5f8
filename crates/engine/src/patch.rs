//! `fs.apply_patch`: a unified diff onto the files of the workspace, as a whole or not at all.

use std::collections::HashMap;

use cap_std::fs::{Permissions, PermissionsExt};

use crate::diff::{self, FileDiff};
use crate::error::WorkspaceError;
use crate::hunk;
use crate::limits::PATCHED_FILE_BYTES_MAX;
use crate::path::WorkspacePath;
use crate::replace::{Beside, Directories, MadeDirectories, Place, Prepared, sha256};
use crate::types::{ChangeKind, PatchReply, PatchRequest, PatchedFile};
use crate::workspace::Workspace;

/// The mode of a file that git says may be executed, before the user's mask.
const EXECUTABLE: u32 = 0o755;

/// How many files of one patch wait without a name: each takes a descriptor.
const UNNAMED_MAX: usize = 64;

impl Workspace {
    /// Applies a unified diff of one or several files. Everything is looked up, compared and written to
    /// the disk beside the files before the first of them changes; each is then replaced as
    /// [`write`](Self::write) does.
    ///
    /// A hunk is looked for up to [`HUNK_OFFSET_LINES_MAX`](crate::HUNK_OFFSET_LINES_MAX) lines away from
    /// where it says it belongs, and fits only where all its context and all that it removes stands.
    /// `/dev/null` makes or removes a file; directories are made on the way, and removed again only if the
    /// patch fails.
    /// Renames, copies, changes of mode, binary files, symbolic links and submodules are refused.
    ///
    /// `stop` is asked before each file and hunk, and while a hunk is looked for; once it returns true the
    /// call ends with [`Cancelled`](WorkspaceError::Cancelled), unless the first file is changed already.
    ///
    /// # Errors
    ///
    /// [`HunkFailed`](WorkspaceError::HunkFailed) names file, hunk and the first line that differs;
    /// [`BadPatch`](WorkspaceError::BadPatch) the line of a text that is no diff. Others are as
    /// [`write`](Self::write) has them. Every file is as it was then; if the machine fails between two
    /// files, those that were replaced get their old content back.
    pub fn apply_patch(
        &self,
        request: &PatchRequest,
        stop: &dyn Fn() -> bool,
    ) -> Result<PatchReply, WorkspaceError> {
        let _writing = self.begin_writing()?;
        look(stop)?;
        self.check_root()?;
        let diffs = diff::parse(&request.patch, request.strip)?;
        let mut seen = HashMap::new();
        let mut plans = Vec::new();
        for diff in &diffs {
            look(stop)?;
            let plan = self.plan(diff, stop)?;
            let name = plan.path.text().to_owned();
            let identity = match &plan.old {
                Some((_, place)) => place.identity()?,
                None => self.identity_of_missing(&plan.path)?,
            };
            if let Some(first) = seen.insert(identity, name.clone()) {
                let problem = if first == name {
                    format!(
                        "names {name:?} for the second time: put all its hunks behind one header"
                    )
                } else {
                    format!(
                        "names {name:?}, and that is the file {first:?} from before: put all its \
                         hunks behind one header"
                    )
                };
                return Err(WorkspaceError::BadPatch { line: diff.line, problem });
            }
            plans.push(plan);
        }
        if !request.dry_run {
            self.carry_out(&plans, stop)?;
        }
        Ok(PatchReply { files: plans.into_iter().map(Plan::into_reply).collect() })
    }

    /// Finds out what a diff makes of one file.
    fn plan(&self, diff: &FileDiff<'_>, stop: &dyn Fn() -> bool) -> Result<Plan, WorkspaceError> {
        let path =
            WorkspacePath::parse_file(diff.old.as_ref().or(diff.new.as_ref()).map_or("", |p| p))?;
        self.must_not_be_part_of_git(path.as_path(), &path)?;
        let mut old = None;
        if diff.old.is_some() {
            let place = self.place(&path, Directories::MustExist)?;
            if !place.exists() {
                return Err(WorkspaceError::NotFound { path: path.text().to_owned() });
            }
            if place.len_bytes() > PATCHED_FILE_BYTES_MAX {
                return Err(WorkspaceError::BadRequest {
                    problem: format!(
                        "{:?} has {} bytes, and a file to be patched may have \
                         {PATCHED_FILE_BYTES_MAX}: write it as a whole",
                        path.text(),
                        place.len_bytes()
                    ),
                });
            }
            if diff.new.is_none() && self.is_symlink(path.as_path()) {
                // The link would lead nowhere afterwards.
                return Err(WorkspaceError::RemovesLink { path: path.text().to_owned() });
            }
            old = Some((place.read()?, place));
        } else if self.has(path.as_path()) {
            return Err(WorkspaceError::MakesExisting { path: path.text().to_owned() });
        }
        let before = old.as_ref().map_or(&[][..], |(content, _)| content);
        let applied = hunk::apply(path.text(), before, &diff.hunks, stop)?;
        if diff.new.is_none() && !applied.content.is_empty() {
            return Err(WorkspaceError::NotEmptied { path: path.text().to_owned() });
        }
        Ok(Plan {
            path,
            old,
            new: diff.new.is_some().then_some(applied.content),
            offsets_lines: applied.offsets_lines,
            is_executable: diff.is_executable,
        })
    }

    fn carry_out(&self, plans: &[Plan], stop: &dyn Fn() -> bool) -> Result<(), WorkspaceError> {
        look(stop)?;
        let mut directories = MadeDirectories::none(self);
        let made = self.places_of_new_files(plans, &mut directories)?;
        let mut steps = Vec::new();
        for (plan, made) in plans.iter().zip(&made) {
            look(stop)?;
            let beside = if steps.len() < UNNAMED_MAX { Beside::Unnamed } else { Beside::Named };
            steps.extend(plan.prepare(made.as_ref(), beside)?);
        }
        look(stop)?;
        for step in &steps {
            if !step.place.is_unchanged()? {
                return Err(step.place.changed(None));
            }
        }
        make(steps)?;
        directories.keep();
        Ok(())
    }

    fn places_of_new_files(
        &self,
        plans: &[Plan],
        directories: &mut MadeDirectories<'_>,
    ) -> Result<Vec<Option<Place>>, WorkspaceError> {
        let made = plans.iter().map(|plan| match plan.old {
            Some(_) => Ok(None),
            None => self.place(&plan.path, Directories::Make(directories)).map(Some),
        });
        made.collect()
    }
}

fn look(stop: &dyn Fn() -> bool) -> Result<(), WorkspaceError> {
    if stop() { Err(WorkspaceError::Cancelled) } else { Ok(()) }
}

/// What becomes of one file.
struct Plan {
    path: WorkspacePath,
    /// What is there.
    old: Option<(Vec<u8>, Place)>,
    /// What will be.
    new: Option<Vec<u8>>,
    offsets_lines: Vec<i64>,
    is_executable: bool,
}

/// One change that only needs to be made.
struct Step<'a> {
    place: &'a Place,
    /// `None` removes the file.
    prepared: Option<Prepared<'a>>,
    before: Option<&'a [u8]>,
}

/// Makes all changes. If one fails, those before it are taken back.
fn make(steps: Vec<Step<'_>>) -> Result<(), WorkspaceError> {
    let mut done: Vec<Undo<'_>> = Vec::new();
    for Step { place, prepared, before } in steps {
        let made = match prepared {
            Some(prepared) => prepared.commit(),
            None => place.remove(),
        };
        if let Err(error) = made {
            done.into_iter().rev().for_each(Undo::take_back);
            return Err(error);
        }
        done.push(Undo { place, before });
    }
    Ok(())
}

/// A change that was made.
struct Undo<'a> {
    place: &'a Place,
    before: Option<&'a [u8]>,
}

impl Undo<'_> {
    /// Gives the file its old content back. What fails here fails on a machine that is failing already,
    /// and the first error is the one that is told.
    fn take_back(self) {
        let _ = match self.before {
            Some(content) => self.place.prepare_again(content).and_then(Prepared::commit),
            None => self.place.remove(),
        };
    }
}

impl Plan {
    fn prepare<'a>(
        &'a self,
        made: Option<&'a Place>,
        beside: Beside,
    ) -> Result<Option<Step<'a>>, WorkspaceError> {
        let before = self.old.as_ref().map(|(content, _)| content.as_slice());
        let Some(place) = self.old.as_ref().map(|(_, place)| place).or(made) else {
            return Ok(None);
        };
        let permissions = self.is_executable.then(|| Permissions::from_mode(EXECUTABLE));
        let prepared = match &self.new {
            Some(content) => Some(place.prepare(content, permissions, beside)?),
            None => None,
        };
        Ok(Some(Step { place, prepared, before }))
    }

    fn into_reply(self) -> PatchedFile {
        let change = match (&self.old, &self.new) {
            (None, _) => ChangeKind::Created,
            (Some(_), Some(_)) => ChangeKind::Modified,
            (Some(_), None) => ChangeKind::Removed,
        };
        PatchedFile {
            path: self.path.text().to_owned(),
            change,
            offsets_lines: self.offsets_lines,
            sha256: self.new.as_deref().map(sha256),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn failure_between_two_files_gives_those_before_it_their_content_back() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| folder.path().join(name);
        for name in ["changed", "removed", "last"] {
            fs::write(file(name), "1\n").unwrap();
        }
        let workspace = Workspace::open(folder.path()).unwrap().writable();
        let text = "--- a/changed\n+++ b/changed\n@@ -1 +1 @@\n-1\n+2\n\
                    --- a/removed\n+++ /dev/null\n@@ -1 +0,0 @@\n-1\n\
                    --- /dev/null\n+++ b/made/for/it\n@@ -0,0 +1 @@\n+2\n\
                    --- a/last\n+++ b/last\n@@ -1 +1 @@\n-1\n+2\n";
        let diffs = diff::parse(text, None).unwrap();
        let plans: Vec<Plan> =
            diffs.iter().map(|diff| workspace.plan(diff, &|| false).unwrap()).collect();
        let mut directories = MadeDirectories::none(&workspace);
        let made = workspace.places_of_new_files(&plans, &mut directories).unwrap();
        let mut steps = Vec::new();
        for (plan, made) in plans.iter().zip(&made) {
            steps.extend(plan.prepare(made.as_ref(), Beside::Unnamed).unwrap());
        }
        assert_eq!(steps.len(), 4);
        // A file cannot take the name of a directory.
        fs::remove_file(file("last")).unwrap();
        fs::create_dir(file("last")).unwrap();

        make(steps).unwrap_err();
        drop(directories);
        assert_eq!(fs::read_to_string(file("changed")).unwrap(), "1\n");
        assert_eq!(fs::read_to_string(file("removed")).unwrap(), "1\n");
        let mut names: Vec<_> =
            fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["changed", "last", "removed"], "nothing else is left");
    }
}
