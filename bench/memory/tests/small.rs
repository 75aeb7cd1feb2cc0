//! The same measurement with a small model: the prediction must hold here, too.

use std::process::Command;

use serde_json::Value;

/// Wider than the bench's bounds: a process of 200 MB is half code and tables.
const BOUNDS: std::ops::RangeInclusive<f64> = 0.8..=1.25;

#[test]
fn a_small_model_holds_what_was_predicted_and_no_rank_holds_it_whole() {
    let output = Command::new(env!("CARGO_BIN_EXE_plumb-bench-memory"))
        .args(["--small", "--steps", "2", "--micro-batch-tokens", "1024"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let figures: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let ratio = |end: &str| {
        let named = |f: &&Value| f["case"].as_str().unwrap().ends_with(end);
        let found = figures.iter().find(named).unwrap_or_else(|| panic!("no {end} in {text}"));
        found["ratio"].as_f64().unwrap()
    };
    for ranks in [1, 2] {
        let peak = ratio(&format!("micro1024-{ranks}-rank-peak"));
        assert!(BOUNDS.contains(&peak), "{peak} of the prediction on {ranks} ranks: {text}");
    }
    assert!(ratio("-2-rank-by-1-rank-peak") < 1.0, "{text}");
    // Loading adds less to each of two ranks than to one alone: neither holds the whole model.
    let (one, two) = (ratio("-1-rank-load-by-whole-model"), ratio("-2-rank-load-by-whole-model"));
    assert!(two < 0.8 * one, "{text}");
}
