//! The layers of the workspace: fails when a crate edge, an `unsafe` or a platform `cfg` stands where
//! the tables below do not allow it.
//!
//! A rule that must change is changed here, in the commit that needs it, with the reason. Each rule has
//! a test on a bad example, so that this test is known to be able to fail.

#![forbid(unsafe_code)]

#[path = "layers/edges.rs"]
mod edges;
#[path = "layers/lexer.rs"]
mod lexer;
#[path = "layers/sources.rs"]
mod sources;

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use edges::{Edge, EdgeKind};

/// One thing that stands where it must not.
#[derive(Debug, PartialEq, Eq)]
struct Violation {
    file: String,
    line: usize,
    rule: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.rule)
    }
}

/// A member of the workspace, as `cargo metadata` describes it.
struct Package {
    name: String,
    /// Relative to the workspace's root, as every path here.
    directory: PathBuf,
    edges: Vec<Edge>,
    /// The first source file of its library and of each binary.
    roots: Vec<PathBuf>,
}

#[test]
fn workspace_keeps_its_layers() {
    let root = workspace_root();
    let packages = read_packages(&root);
    assert!(packages.len() >= 6, "`cargo metadata` lists only {} packages", packages.len());

    let mut violations = Vec::new();
    let mut files_read = 0;
    for package in &packages {
        violations.extend(package.edges.iter().filter_map(edges::check));
        for file in rust_files(&root.join(&package.directory)) {
            let relative = relative_to(&file, &root);
            let text = std::fs::read_to_string(&file).expect("a source file is readable");
            let is_root = package.roots.iter().any(|path| path == Path::new(&relative));
            violations.extend(sources::check(&relative, &package.name, is_root, &text));
            files_read += 1;
        }
    }
    assert!(files_read > 20, "only {files_read} source files were found");
    let listed: Vec<String> = violations.iter().map(Violation::to_string).collect();
    assert!(listed.is_empty(), "violations: {}\n{}", listed.len(), listed.join("\n"));
}

fn workspace_root() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.ancestors().nth(2).expect("this crate lies two folders below the root").to_path_buf()
}

fn read_packages(root: &Path) -> Vec<Package> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
        .current_dir(root)
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value =
        serde_json::from_slice(&output.stdout).expect("cargo metadata is JSON");
    array(&metadata["packages"]).iter().map(|package| read_package(package, root)).collect()
}

fn read_package(package: &serde_json::Value, root: &Path) -> Package {
    let name = string(&package["name"]);
    let manifest = PathBuf::from(string(&package["manifest_path"]));
    let manifest_text = std::fs::read_to_string(&manifest).expect("a manifest is readable");
    let file = relative_to(&manifest, root);
    let edges = array(&package["dependencies"])
        .iter()
        .map(|dependency| {
            let to = string(&dependency["name"]);
            Edge {
                line: edges::line_of(&manifest_text, &to),
                file: file.clone(),
                from: name.clone(),
                kind: match dependency["kind"].as_str() {
                    None => EdgeKind::Normal,
                    Some("build") => EdgeKind::Build,
                    Some("dev") => EdgeKind::Dev,
                    Some(other) => panic!("cargo knows a new kind of dependency: {other}"),
                },
                target: dependency["target"].as_str().map(String::from),
                to,
            }
        })
        .collect();
    let roots = array(&package["targets"])
        .iter()
        .filter(|target| {
            array(&target["kind"]).iter().any(|kind| {
                matches!(kind.as_str(), Some("lib" | "bin" | "proc-macro" | "cdylib" | "staticlib"))
            })
        })
        .map(|target| relative_to(Path::new(&string(&target["src_path"])), root).into())
        .collect();
    let directory = manifest.parent().expect("a manifest lies in a folder");
    Package { directory: relative_to(directory, root).into(), name, edges, roots }
}

fn array(value: &serde_json::Value) -> &[serde_json::Value] {
    value.as_array().expect("cargo metadata has a list here")
}

fn string(value: &serde_json::Value) -> String {
    value.as_str().expect("cargo metadata has a string here").to_owned()
}

fn relative_to(path: &Path, root: &Path) -> String {
    let relative = path.strip_prefix(root).expect("members lie in the workspace");
    relative.to_str().expect("paths are UTF-8").replace('\\', "/")
}

/// Every Rust file below `directory`, but those of nested build output.
fn rust_files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut pending = vec![directory.to_path_buf()];
    while let Some(folder) = pending.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder is readable") {
            let path = entry.expect("a folder is readable").path();
            if path.is_dir() {
                if path.file_name().is_some_and(|name| name != "target") {
                    pending.push(path);
                }
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}
