//! Behaviour of `fs.search.page`.

mod common;

use std::cell::Cell;
use std::num::NonZeroU32;

use common::{LARGE, Tree};
use lapwing_engine::{
    ErrorClass, LINE_BYTES_MAX, MATCHES_DEFAULT, MATCHES_MAX, SearchRequest, TEXT_BYTES_MAX,
    WorkspaceError,
};

/// Path, line and column of each match.
fn places(tree: &Tree, request: &SearchRequest) -> Vec<(String, u64, u64)> {
    let reply = tree.search(request).unwrap();
    assert_eq!(reply.next, None);
    reply.matches.into_iter().map(|m| (m.path, m.line_number, m.column)).collect()
}

fn place(path: &str, line: u64, column: u64) -> (String, u64, u64) {
    (path.to_owned(), line, column)
}

#[test]
fn search_finds_lines_in_the_order_of_a_listing() {
    let tree = Tree::of(&[
        ("b", b"one\nthe needle\n\nneedle and needle"),
        ("a/z", "é needle\n".as_bytes()),
        ("a.x", b"needle\r\n"),
        ("c", b"nothing"),
        (".hidden", b"needle"),
    ]);
    let reply = tree.search(&SearchRequest::pattern("needle")).unwrap();
    assert_eq!((reply.files_searched, reply.files_skipped, reply.truncated), (4, 0, false));
    assert_eq!(
        serde_json::to_string(&reply.matches[0]).unwrap(),
        concat!(
            r#"{"path":"a/z","line_number":1,"column":4,"match_len_bytes":6,"#,
            r#""text":"é needle","text_column":1}"#
        )
    );
    assert_eq!(reply.matches[1].text, "needle", "without its line ending");
    let request = SearchRequest { hidden: true, ..SearchRequest::pattern("needle$") };
    let found = [
        place(".hidden", 1, 1),
        place("a/z", 1, 4),
        place("a.x", 1, 1),
        place("b", 2, 5),
        place("b", 4, 12),
    ];
    assert_eq!(places(&tree, &request), found);
}

#[test]
fn search_takes_expressions_and_plain_text_in_either_case() {
    let tree = Tree::of(&[("f", b"a.b\nA.B\naxb\n^start\n")]);
    let lines = |request: &SearchRequest| -> Vec<u64> {
        places(&tree, request).into_iter().map(|(_, line, _)| line).collect()
    };
    let plain = SearchRequest::pattern("a.b");
    assert_eq!(lines(&plain), [1, 3]);
    assert_eq!(lines(&SearchRequest { case_insensitive: true, ..plain.clone() }), [1, 2, 3]);
    assert_eq!(lines(&SearchRequest { fixed_strings: true, ..plain.clone() }), [1]);
    assert_eq!(lines(&SearchRequest::pattern(r"^\^")), [4]);
    assert_eq!(lines(&SearchRequest::pattern("")), [1, 2, 3, 4], "an empty pattern is any line");
}

#[test]
fn search_starts_where_it_is_told() {
    let tree = Tree::of(&[
        (".gitignore", b"ignored\n"),
        ("ignored", b"x"),
        ("a/f", b"x"),
        ("a/ignored", b"x"),
        ("b/f", b"x"),
    ]);
    tree.symlink("a/f", "link");
    let at = |path: &str| {
        let request = SearchRequest { path: path.to_owned(), ..SearchRequest::pattern("x") };
        places(&tree, &request)
    };
    assert_eq!(at("."), [place("a/f", 1, 1), place("b/f", 1, 1)]);
    assert_eq!(at("a"), [place("a/f", 1, 1)]);
    assert_eq!(at("a/f"), [place("a/f", 1, 1)]);
    assert_eq!(at("ignored"), [place("ignored", 1, 1)], "what is named is searched");
    assert_eq!(at("link"), [place("link", 1, 1)]);
}

#[test]
fn search_pages_hold_every_match_once() {
    let tree = Tree::of(&[]);
    for file in 0..12 {
        let lines: String =
            (0..file * 3).map(|line| format!("match \"{line}\"\nother\n")).collect();
        tree.write(&format!("d{}/f{file}", file % 3), lines.as_bytes());
    }
    let whole = tree.search(&SearchRequest::pattern("match")).unwrap().matches;
    assert_eq!(whole.len(), (0..12).map(|file| file * 3).sum::<usize>());
    for max in [300, 310, 350, 500, 1000, 5000] {
        let matches = tree.search_pages(SearchRequest::pattern("match"), max);
        let places = |matches: &[lapwing_engine::Match]| -> Vec<(String, u64, u64)> {
            matches.iter().map(|m| (m.path.clone(), m.line_number, m.column)).collect()
        };
        assert_eq!(places(&matches), places(&whole), "with pages of {max} bytes");
    }
    for count in [1, 2, 3, 7, 197, 198, 199] {
        let max_matches = NonZeroU32::new(count).unwrap();
        let request = SearchRequest { max_matches, ..SearchRequest::pattern("match") };
        assert_eq!(tree.search_pages(request, LARGE), whole, "with pages of {count} matches");
    }
    let request = SearchRequest {
        path: "d2/f11".into(),
        max_matches: NonZeroU32::MIN,
        ..SearchRequest::pattern("match")
    };
    assert_eq!(tree.search_pages(request, LARGE).len(), 33, "in a single file too");
}

#[test]
fn search_says_whether_there_is_more() {
    let tree = Tree::of(&[("f", "x\n".repeat(250).as_bytes())]);
    let request = SearchRequest::pattern("x");
    let reply = tree.search(&request).unwrap();
    assert_eq!((reply.matches.len(), reply.truncated), (MATCHES_DEFAULT as usize, true));
    let exact = SearchRequest { max_matches: NonZeroU32::new(250).unwrap(), ..request.clone() };
    let reply = tree.search(&exact).unwrap();
    assert_eq!((reply.matches.len(), reply.truncated, reply.next), (250, false, None));
    tree.write("f", "x\n".repeat(MATCHES_MAX as usize + 5).as_bytes());
    let request = SearchRequest { max_matches: NonZeroU32::MAX, ..request };
    let reply = tree.workspace.search(&request, 100 << 20, &|| false).unwrap();
    assert_eq!((reply.matches.len(), reply.truncated), (MATCHES_MAX as usize, true));
}

#[test]
fn search_refuses_cursors_of_other_requests() {
    let tree = Tree::of(&[("f", b"x\nx\n")]);
    let one = SearchRequest { max_matches: NonZeroU32::MIN, ..SearchRequest::pattern("x") };
    let cursor = tree.search(&one).unwrap().next;
    assert!(cursor.is_some());
    for other in [
        SearchRequest { cursor: cursor.clone(), ..SearchRequest::pattern("y") },
        SearchRequest { cursor: cursor.clone(), hidden: true, ..one.clone() },
        SearchRequest { cursor, path: "f".into(), ..one.clone() },
        SearchRequest { cursor: Some("AAAA".into()), ..one.clone() },
    ] {
        let error = tree.search(&other).unwrap_err();
        assert!(matches!(error, WorkspaceError::BadCursor), "{error}");
    }
}

#[test]
fn search_skips_binary_files() {
    let mut late = "needle\n".repeat(20_000).into_bytes();
    late.push(0);
    late.extend_from_slice(b"needle\n");
    let tree = Tree::of(&[
        ("bin", b"needle\0\nneedle\n"),
        ("text", b"needle\n"),
        ("utf16", b"\xff\xfen\0e\0e\0d\0l\0e\0\n\0"),
    ]);
    let request = SearchRequest::pattern("needle");
    assert_eq!(places(&tree, &request), [place("text", 1, 1), place("utf16", 1, 1)]);
    assert_eq!(tree.search(&request).unwrap().files_skipped, 1);
    tree.write("bin", &late);
    let many = SearchRequest { max_matches: NonZeroU32::new(10_000).unwrap(), ..request };
    let matches = tree.search_pages(many, 1 << 24);
    assert!(matches.len() <= 20_002, "nothing behind the NUL");
    let mut lines: Vec<u64> =
        matches.iter().filter(|m| m.path == "bin").map(|m| m.line_number).collect();
    assert!(lines.is_sorted());
    lines.dedup();
    assert_eq!(lines.len() + 2, matches.len());
}

#[test]
fn search_cuts_a_huge_line_around_its_match() {
    let mut line = vec![b'.'; 3 << 20];
    line.extend_from_slice(b"needle");
    line.resize(6 << 20, b'.');
    let tree = Tree::of(&[("f", &line)]);
    let reply = tree.search(&SearchRequest::pattern("needle")).unwrap();
    let found = &reply.matches[0];
    assert_eq!((found.line_number, found.column), (1, (3 << 20) + 1));
    assert!(found.text_cut && found.text.len() <= TEXT_BYTES_MAX);
    let start = usize::try_from(found.column - found.text_column).unwrap();
    assert_eq!(&found.text[start..start + 6], "needle");
}

#[test]
fn search_skips_a_file_with_a_line_that_does_not_fit_memory() {
    let tree = Tree::of(&[("huge", &vec![b'x'; LINE_BYTES_MAX * 2 + 1]), ("small", b"x")]);
    let reply = tree.search(&SearchRequest::pattern("x$")).unwrap();
    assert_eq!((reply.matches.len(), reply.files_skipped), (1, 1));
    assert_eq!(reply.matches[0].path, "small");
}

#[test]
fn search_gives_up_text_rather_than_a_match_in_a_tiny_reply() {
    let tree = Tree::of(&[("f", format!("{}\n", "\u{1}".repeat(2000)).as_bytes())]);
    let matches = tree.search_pages(SearchRequest::pattern("\u{1}"), 400);
    assert_eq!(matches.len(), 1);
    assert!(matches[0].text_cut && !matches[0].text.is_empty());
    let request = SearchRequest::pattern("\u{1}");
    let error = tree.workspace.search(&request, 150, &|| false).unwrap_err();
    assert!(matches!(error, WorkspaceError::ReplyTooSmall { .. }), "{error}");
}

#[test]
fn search_replaces_what_is_not_utf8() {
    let tree = Tree::of(&[("f", b"\xff needle \xfe\n")]);
    let reply = tree.search(&SearchRequest::pattern("needle")).unwrap();
    assert_eq!(reply.matches[0].text, "\u{fffd} needle \u{fffd}");
    assert_eq!(reply.matches[0].column, 3);
}

#[test]
fn search_names_the_problem_of_a_pattern_in_one_sentence() {
    let tree = Tree::of(&[("f", b"x")]);
    for (pattern, word) in [
        ("(", "unclosed group"),
        ("a{2,1}", "repetition"),
        ("*", "repetition operator"),
        ("[z-a]", "range"),
        (r"\p{Nope}", "Unicode"),
        ("a\nb", "line break"),
        (r"a\nb", "line break"),
        (r"\x00", "NUL"),
        (r"(?:\w{100}){100}", "size"),
        (&"(".repeat(200), ""),
        (&"a".repeat(5000), "4096 bytes"),
    ] {
        let error = tree.search(&SearchRequest::pattern(pattern)).unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, WorkspaceError::BadPattern { .. }), "{text}");
        assert_eq!(error.class(), ErrorClass::InvalidArgument);
        assert!(text.contains(word) && !text.contains('\n'), "{pattern}: {text}");
    }
}

#[test]
fn search_that_is_cancelled_stops_early() {
    let tree = Tree::of(&[]);
    for file in 0..100 {
        tree.write(&format!("f{file}"), b"needle\n");
    }
    let asked = Cell::new(0);
    let stop = || {
        asked.set(asked.get() + 1);
        asked.get() > 120
    };
    let request = SearchRequest::pattern("needle");
    let error = tree.workspace.search(&request, LARGE, &stop).unwrap_err();
    assert!(matches!(error, WorkspaceError::Cancelled), "{error}");
    assert_eq!(error.class(), ErrorClass::Cancelled);
    assert_eq!(asked.get(), 121, "and does nothing after it was told");
}

#[test]
fn search_that_is_cancelled_stops_within_a_file() {
    let tree = Tree::of(&[("f", &b"nothing\n".repeat(4 << 20 >> 3))]);
    let asked = Cell::new(0);
    let stop = || {
        asked.set(asked.get() + 1);
        asked.get() > 10
    };
    let request = SearchRequest { path: "f".into(), ..SearchRequest::pattern("needle") };
    let error = tree.workspace.search(&request, LARGE, &stop).unwrap_err();
    assert!(matches!(error, WorkspaceError::Cancelled), "{error}");
    assert_eq!(asked.get(), 11);
}

#[test]
fn search_passes_over_fifos_without_blocking_and_refuses_a_named_one() {
    let tree = Tree::of(&[("f", b"x")]);
    tree.fifo("fifo");
    let workspace = tree.workspace.clone();
    let request = SearchRequest::pattern("x");
    let reply =
        common::without_blocking(move || workspace.search(&request, LARGE, &|| false)).unwrap();
    assert_eq!((reply.matches.len(), reply.files_searched), (1, 1));
    let workspace = tree.workspace.clone();
    let request = SearchRequest { path: "fifo".into(), ..SearchRequest::pattern("x") };
    let error =
        common::without_blocking(move || workspace.search(&request, LARGE, &|| false)).unwrap_err();
    assert!(matches!(error, WorkspaceError::NotAFile { .. }), "{error}");
}

#[test]
fn search_requests_have_defaults_and_no_unknown_fields() {
    let minimal: SearchRequest = serde_json::from_str(r#"{"pattern":"x"}"#).unwrap();
    assert_eq!(minimal, SearchRequest::pattern("x"));
    let text = r#"{"pattern":"x","regex":true}"#;
    let error = serde_json::from_str::<SearchRequest>(text).unwrap_err();
    assert!(error.to_string().contains("`regex`"), "{error}");
}

#[test]
fn search_as_a_stream_does_not_look_at_the_cursor() {
    let tree = Tree::of(&[("a", b"x\nx\n")]);
    let first = SearchRequest { max_matches: NonZeroU32::MIN, ..SearchRequest::pattern("x") };
    for cursor in [tree.search(&first).unwrap().next, Some("nonsense!".into())] {
        let mut lines = Vec::new();
        let mut give = |found: lapwing_engine::Match| {
            lines.push(found.line_number);
            true
        };
        let request = SearchRequest { cursor, ..SearchRequest::pattern("x") };
        tree.workspace.search_each(&request, &mut give, &|| false).unwrap();
        assert_eq!(lines, [1, 2]);
    }
}
