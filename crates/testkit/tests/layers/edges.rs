//! Which crate may use which.

use crate::Violation;

/// What a crate may name under `[dependencies]` and `[build-dependencies]`.
struct Row {
    package: &'static str,
    /// Crates of this workspace.
    lapwing: &'static [&'static str],
    /// Crates of others; `None` where the choice is free.
    others: Option<&'static [&'static str]>,
}

const TABLE: &[Row] = &[
    Row {
        package: "lapwing-proto",
        lapwing: &[],
        others: Some(&["crc-fast", "postcard", "serde", "zerocopy"]),
    },
    Row {
        package: "lapwing-shm",
        lapwing: &[],
        // loom replaces the atomics when the algorithms are model-checked.
        others: Some(&["loom", "rustix", "thiserror"]),
    },
    Row {
        package: "lapwing",
        lapwing: &["lapwing-proto", "lapwing-shm"],
        // Neither exporters nor configuration formats: they belong to lapwing-ops.
        others: Some(&[
            "futures-core",
            "hdrhistogram",
            "pin-project-lite",
            "postcard",
            "rustix",
            "schemars",
            "serde",
            "serde_json",
            "serde_path_to_error",
            "thiserror",
            "tokio",
            "tracing",
            // The optional feature `compression`.
            "zstd-safe",
        ]),
    },
    Row { package: "lapwing-ops", lapwing: &["lapwing"], others: None },
    Row { package: "lapwing-bridge", lapwing: &["lapwing"], others: None },
    Row { package: "lapwing-engine", lapwing: &["lapwing"], others: None },
    Row { package: "lapwing-cli", lapwing: ABOVE, others: None },
    Row { package: "lapwing-c", lapwing: ABOVE, others: None },
    Row { package: "lapwing-node", lapwing: ABOVE, others: None },
    Row { package: "lapwing-python", lapwing: ABOVE, others: None },
];

/// What the command and the bindings are made of.
const ABOVE: &[&str] = &["lapwing", "lapwing-bridge", "lapwing-engine", "lapwing-ops"];

/// Plays the hostile peer and is never published: it may use everything, and every crate's tests may
/// use it.
const TESTKIT: &str = "lapwing-testkit";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EdgeKind {
    Normal,
    Build,
    Dev,
}

/// One entry of one manifest.
#[derive(Debug, Clone)]
pub(crate) struct Edge {
    pub(crate) from: String,
    pub(crate) to: String,
    pub(crate) kind: EdgeKind,
    /// The `cfg(…)` or the triple it depends on.
    pub(crate) target: Option<String>,
    pub(crate) file: String,
    pub(crate) line: usize,
}

pub(crate) fn check(edge: &Edge) -> Option<Violation> {
    let Edge { from, to, .. } = edge;
    let rule = if edge.target.as_deref().is_some_and(|target| target != "cfg(loom)") {
        format!("{from} depends on {to} on some platforms only; platforms differ in code, in sys/")
    } else if from == TESTKIT {
        return None;
    } else {
        let Some(row) = TABLE.iter().find(|row| row.package == from) else {
            return violation(edge, format!("{from} has no row in the table of layers"));
        };
        let internal = to == "lapwing" || to.starts_with("lapwing-");
        let dev = edge.kind == EdgeKind::Dev;
        if internal && !row.lapwing.contains(&to.as_str()) && !(dev && to == TESTKIT) {
            format!("{from} must not use {to}; of this workspace it may use {:?}", row.lapwing)
        } else if !internal && !dev && row.others.is_some_and(|all| !all.contains(&to.as_str())) {
            format!(
                "{from} must not use {to}; of others it may use {:?}",
                row.others.unwrap_or(&[])
            )
        } else {
            return None;
        }
    };
    violation(edge, rule)
}

fn violation(edge: &Edge, rule: String) -> Option<Violation> {
    Some(Violation { file: edge.file.clone(), line: edge.line, rule })
}

/// The line of a manifest that names `dependency`, or 1.
pub(crate) fn line_of(manifest: &str, dependency: &str) -> usize {
    let names_it = |line: &str| {
        line.trim_start().trim_start_matches('"').strip_prefix(dependency).is_some_and(|rest| {
            rest.trim_start_matches('"').trim_start().starts_with(['.', '=', ' ', ']'])
        })
    };
    manifest.lines().position(names_it).map_or(1, |index| index + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edge(from: &str, to: &str, kind: EdgeKind) -> Edge {
        Edge {
            from: from.into(),
            to: to.into(),
            kind,
            target: None,
            file: "crates/x/Cargo.toml".into(),
            line: 7,
        }
    }

    fn refused(from: &str, to: &str, kind: EdgeKind) -> bool {
        check(&edge(from, to, kind)).is_some()
    }

    #[test]
    fn edge_of_proto_or_shm_to_what_it_must_never_use_is_refused() {
        for kind in [EdgeKind::Normal, EdgeKind::Build] {
            assert!(refused("lapwing-proto", "tokio", kind));
            assert!(refused("lapwing-proto", "lapwing-shm", kind));
            assert!(refused("lapwing-shm", "lapwing-proto", kind));
            assert!(refused("lapwing-shm", "tokio", kind));
            assert!(refused("lapwing", "toml", kind));
        }
        assert!(!refused("lapwing-proto", "zerocopy", EdgeKind::Normal));
        assert!(!refused("lapwing-shm", "rustix", EdgeKind::Normal));
        assert!(!refused("lapwing", "tokio", EdgeKind::Normal));
    }

    #[test]
    fn edge_past_a_layer_is_refused_in_tests_too() {
        for kind in [EdgeKind::Normal, EdgeKind::Dev] {
            for above in ["lapwing-engine", "lapwing-bridge", "lapwing-cli", "lapwing-node"] {
                assert!(refused(above, "lapwing-proto", kind), "{above}");
                assert!(refused(above, "lapwing-shm", kind), "{above}");
            }
            assert!(refused("lapwing", "lapwing-ops", kind));
            assert!(refused("lapwing", "lapwing-engine", kind));
            assert!(refused("lapwing-engine", "lapwing-cli", kind));
        }
        assert!(!refused("lapwing-cli", "lapwing-engine", EdgeKind::Normal));
    }

    #[test]
    fn edge_of_a_test_to_the_testkit_is_allowed_and_a_shipped_one_is_refused() {
        assert!(!refused("lapwing-proto", "lapwing-testkit", EdgeKind::Dev));
        assert!(!refused("lapwing-proto", "proptest", EdgeKind::Dev));
        assert!(refused("lapwing-cli", "lapwing-testkit", EdgeKind::Normal));
        assert!(!refused("lapwing-testkit", "lapwing-shm", EdgeKind::Normal));
    }

    #[test]
    fn edge_for_one_platform_is_refused_and_one_for_loom_is_not() {
        let mut one = edge("lapwing-shm", "rustix", EdgeKind::Normal);
        one.target = Some("cfg(unix)".into());
        assert!(check(&one).is_some());
        one.target = Some("cfg(loom)".into());
        assert_eq!(check(&one), None);
    }

    #[test]
    fn package_without_a_row_is_refused_by_name_and_place() {
        let found = check(&edge("lapwing-extra", "serde", EdgeKind::Normal)).expect("a violation");
        let text = "crates/x/Cargo.toml:7: lapwing-extra has no row in the table of layers";
        assert_eq!(found.to_string(), text);
    }

    #[test]
    fn line_of_a_dependency_is_where_its_name_stands_whole() {
        let manifest =
            "[dependencies]\nlapwing-proto.workspace = true\nlapwing = { path = \"x\" }\n";
        assert_eq!(line_of(manifest, "lapwing"), 3);
        assert_eq!(line_of(manifest, "lapwing-proto"), 2);
        assert_eq!(line_of(manifest, "absent"), 1);
    }
}
