//! Each scenario of `lapwing bench`, briefly: that it comes to an end and what its rows hold. No times.

mod common;

use common::lapwing;
use serde_json::Value;

/// What every row has, in every scenario. A contract: see docs/benchmarks.md.
const NAMES: &[&str] = &[
    "scenario",
    "system",
    "api",
    "transport",
    "spin",
    "checksum",
    "pinned",
    "payload_bytes",
    "in_flight",
    "connections",
    "samples",
    "p50_ns",
    "p99_ns",
    "p999_ns",
    "max_ns",
    "per_second",
    "bytes_per_second",
    "server_private_kib",
    "server_shared_kib",
    "floor_p50_ns",
    "floor_p99_ns",
    "cores",
    "ratio_p50",
    "ratio_p50_range",
    "ratio_to_eventfd",
    "ratio_to_copy",
    "ratio_to_copy_range",
    "rate_to_socket",
    "rate_to_socket_range",
    "stalled_streams",
    "ratio_to_unstalled",
    "ratio_to_unstalled_range",
    "ratio_p99_to_unstalled",
    "every_ns",
    "ratio_to_line",
    "ratio_p99_to_line",
    "above_line_p50_ns",
    "above_line_p99_ns",
    "from_due_p50_ns",
    "from_due_p99_ns",
    "from_due_p999_ns",
    "before_private_kib",
    "before_shared_kib",
    "peak_private_kib",
    "peak_shared_kib",
    "after_private_kib",
    "after_shared_kib",
    "back_after_ms",
    "rounds",
    "clock_ns",
];

/// Runs a scenario once, where the system puts it, sleeping: the machine is busy with other tests.
#[track_caller]
fn rows(args: &str) -> Vec<Value> {
    let mut all = vec!["bench"];
    all.extend(args.split(' '));
    all.extend(["--rounds", "1", "--unpinned", "--spin", "adaptive", "--json"]);
    let printed = lapwing(&all).succeeds();
    let rows: Vec<Value> = printed.lines().map(|row| serde_json::from_str(row).unwrap()).collect();
    for row in &rows {
        for name in NAMES {
            assert!(row.get(name).is_some(), "no {name} in {row}");
        }
        assert!(row["floor_p50_ns"].as_u64() > Some(0), "{row}");
        assert_eq!(row["rounds"], 1);
    }
    rows
}

fn systems(rows: &[Value]) -> Vec<&str> {
    rows.iter().map(|row| row["system"].as_str().unwrap()).collect()
}

#[test]
fn scenarios_of_one_length_have_their_four_rows() {
    for args in ["rtt --samples 50 --api tokio", "oneway --samples 50", "stream --samples 50"] {
        let rows = rows(args);
        assert_eq!(systems(&rows), ["lapwing", "floor", "bare-socket", "bare-eventfd"]);
        assert_eq!((&rows[0]["samples"], &rows[0]["payload_bytes"]), (&50.into(), &64.into()));
        assert_eq!(rows[0]["in_flight"].is_null(), !args.starts_with("rtt"));
    }
}

#[test]
fn typed_calls_are_compared_with_calls_of_bytes_to_the_same_sort_of_handler() {
    for args in ["--api blocking", "--api tokio"] {
        let rows = rows(&format!("typed --samples 50 {args}"));
        let told: Vec<_> = rows
            .iter()
            .map(|row| {
                let system = row["system"].as_str().unwrap();
                (system, &row["scenario"], &row["handler"], &row["deadline"])
            })
            .collect();
        let (rtt, typed) = (&"rtt".into(), &"typed".into());
        let (inline, later, none) = (&"inline".into(), &"async".into(), &Value::Null);
        let (without, with) = (&false.into(), &true.into());
        let mut expected = Vec::new();
        for handler in [inline, later] {
            let parts = [(rtt, none), (typed, without), (typed, with)];
            expected.extend(parts.map(|(scenario, timed)| ("lapwing", scenario, handler, timed)));
        }
        let bare = ["floor", "bare-socket", "bare-eventfd"];
        expected.extend(bare.map(|system| (system, rtt, none, none)));
        assert_eq!(told, expected);
        for (row, compared) in rows.iter().zip([false, true, true, false, true, true]) {
            assert_eq!(row["ratio_to_raw"].is_number(), compared, "{row}");
            assert_eq!(row["above_raw_mid_ns"].is_number(), compared, "{row}");
        }
    }
}

#[test]
fn mixed_counts_every_message_of_both_systems() {
    for args in ["--api blocking", "--api tokio", "--transport socket"] {
        let rows = rows(&format!("mixed --samples 50 {args}"));
        assert_eq!(systems(&rows), ["lapwing", "floor", "bare-socket"]);
        for row in [&rows[0], &rows[2]] {
            assert_eq!((&row["scenario"], &row["samples"]), (&"mixed".into(), &50.into()));
            assert!(row["in_flight"].is_null() && row["p50_ns"].is_null(), "{row}");
            // Five lengths in equal counts.
            let mean =
                row["bytes_per_second"].as_f64().unwrap() / row["per_second"].as_f64().unwrap();
            assert!((mean - 164_964.0 / 5.0).abs() < 1.0, "{mean}");
        }
        assert!(rows[0]["rate_to_socket"].as_f64() > Some(0.0));
    }
}

#[test]
fn echo_is_compared_with_bare_copies() {
    for args in ["--api blocking", "--api tokio"] {
        let rows = rows(&format!("echo --samples 20 {args}"));
        assert_eq!(systems(&rows), ["lapwing", "floor", "bare-copy", "bare-socket"]);
        assert_eq!((&rows[0]["scenario"], &rows[0]["samples"]), (&"echo".into(), &20.into()));
        assert_eq!(rows[0]["payload_bytes"], 1_048_576);
        assert_eq!(rows[2]["payload_bytes"], 1_048_576);
        assert!(rows[0]["ratio_to_copy"].as_f64() > Some(0.0));
        assert_eq!(rows[2]["ratio_to_copy"], 1.0);
    }
}

#[test]
fn in_place_hands_messages_over_in_both_directions() {
    for args in ["--api blocking", "--api tokio", "--payload 200000"] {
        let rows = rows(&format!("in-place --samples 50 {args}"));
        assert_eq!(systems(&rows), ["lapwing", "floor"]);
        assert_eq!((&rows[0]["scenario"], &rows[0]["samples"]), (&"in-place".into(), &50.into()));
        assert!(rows[0]["p50_ns"].as_u64() > Some(0));
    }
}

#[test]
fn chunks_times_every_item_from_its_sending_and_from_when_it_was_due() {
    for args in ["--api blocking", "--api tokio", "--transport socket"] {
        let rows = rows(&format!("chunks --samples 200 --every-ns 20000 {args}"));
        assert_eq!(systems(&rows), ["lapwing", "floor", "bare-line"]);
        assert_eq!((&rows[2]["scenario"], &rows[2]["samples"]), (&"chunks".into(), &200.into()));
        let row = &rows[0];
        assert_eq!((&row["scenario"], &row["samples"]), (&"chunks".into(), &200.into()));
        for figure in
            ["ratio_to_line", "ratio_p99_to_line", "above_line_p50_ns", "above_line_p99_ns"]
        {
            assert!(row[figure].is_f64() && rows[1][figure].is_f64(), "{figure}: {row}");
        }
        assert_eq!((&row["payload_bytes"], &row["every_ns"]), (&200.into(), &20_000.into()));
        assert!(row["in_flight"].is_null() && row["p999_ns"].as_u64() > Some(0), "{row}");
        assert!(row["from_due_p50_ns"].as_u64() >= row["p50_ns"].as_u64(), "{row}");
    }
}

#[test]
fn stalled_has_calls_without_the_stream_and_beside_it() {
    let rows = rows("stalled --samples 400 --in-flight 200");
    assert_eq!(systems(&rows), ["lapwing", "lapwing", "lapwing", "lapwing", "floor"]);
    for (row, (stalled, calls)) in rows.iter().zip([(0, 1), (0, 200), (1, 1), (1, 200)]) {
        assert_eq!((&row["scenario"], &row["samples"]), (&"stalled".into(), &400.into()));
        assert_eq!((&row["stalled_streams"], &row["in_flight"]), (&stalled.into(), &calls.into()));
        assert!(row["p99_ns"].as_u64() > Some(0) && row["ratio_to_unstalled"].is_f64(), "{row}");
    }
}

#[test]
fn burst_tells_the_memory_before_at_the_peak_and_after() {
    for args in ["--api blocking", "--api tokio"] {
        let rows = rows(&format!("burst --samples 6 --idle-ms 100 {args}"));
        assert_eq!(systems(&rows), ["lapwing", "floor"]);
        let row = &rows[0];
        assert_eq!((&row["scenario"], &row["samples"]), (&"burst".into(), &6.into()));
        assert_eq!((&row["payload_bytes"], &row["in_flight"]), (&5_000_000.into(), &4.into()));
        let sum = |when: &str| {
            let kib = |kind: &str| row[format!("{when}_{kind}_kib")].as_u64().unwrap();
            kib("private") + kib("shared")
        };
        // A message's block, or a copy of it.
        assert!(sum("peak") > sum("before") + 4_000, "{row}");
        assert!(sum("after") < sum("peak"), "{row}");
    }
}

#[test]
fn shortest_messages_of_each_scenario_go() {
    for args in ["rtt --payload 1", "in-place --payload 8", "chunks --payload 24"] {
        rows(&format!("{args} --samples 50"));
    }
}

/// Where each side looks all the time for what the other cannot write meanwhile.
#[test]
fn processes_that_share_a_core_come_to_their_end() {
    // The processes that this thread starts stay there, too.
    assert!((0..1024).any(|core| lapwing::floor::pin_to_core(core).is_ok()));
    for args in ["rtt --samples 50", "echo --samples 20", "chunks --samples 200"] {
        assert_eq!(rows(args)[0]["rounds"], 1);
    }
}

#[test]
fn option_of_another_scenario_is_refused() {
    for args in [
        ["rtt", "--in-flight", "2"],
        ["mixed", "--payload", "64"],
        ["in-place", "--transport", "socket"],
        ["echo", "--rounds", "0"],
        ["rtt", "--payload", "0"],
        ["in-place", "--payload", "7"],
        ["chunks", "--payload", "23"],
    ] {
        let ended = lapwing(&[&["bench"][..], &args].concat());
        assert_eq!(ended.code, Some(2), "{args:?}: {ended:?}");
    }
    let ended = lapwing(&["bench", "rtt", "--checksum", "off", "--transport", "socket"]);
    assert_eq!(ended.code, Some(2), "{ended:?}");
    assert!(ended.stderr.starts_with("lapwing: frames over the socket always have"), "{ended:?}");
}
