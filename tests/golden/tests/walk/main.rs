//! Checks every golden file: `make golden`, or `GOLDEN=<folder>` for another folder.
//!
//! Each module lists the files that it checks in its `CONSUMERS`. A file without a consumer fails
//! the test, and so does a consumer without a file (in the project's own folder).

use std::path::PathBuf;

use plumb_golden::{Agreement, Case, Failure, GoldenFile, Outcome, Tolerance, compare, holds_nan};
use serde_json::Value;

mod constraint;
mod data_rows;
mod gdpo;
mod lightrft_advantage;
mod lightrft_loss;
mod pairs;
mod pop;
mod preference;
mod rank_list;
mod rank_loss;
mod rank_reward;
mod rank_token;
mod safe_rlhf;
mod safe_rlhf_data;
mod safe_rlhf_loss;
mod safer_judge;
mod safer_steer;
mod safety_metric;
mod safework;
mod safework_verdict;
mod score_model;
mod supervised;
mod tensors;
mod verl_advantage;
mod verl_kl;
mod verl_loss;
mod verl_policy;

/// How a file is checked.
#[derive(Clone, Copy)]
enum Check {
    /// Runs our function on a case and shapes the result like the reference's.
    Result(fn(&Case) -> Result<Value, Failure>),
    /// For results that hang on another language's random generator: what remains of ours and of
    /// the reference's once the generator's choice is taken away. Listed by name in the report.
    Invariants(fn(&Case, &Value) -> Result<Projected, Failure>),
}

/// Ours and the reference's result, less what a random generator decided.
type Projected = (Value, Value);

/// A file's key, `area/name`, and how it is checked.
type Consumer = (&'static str, Check);

/// All modules' files.
const CONSUMERS: &[&[Consumer]] = &[
    constraint::CONSUMERS,
    safety_metric::CONSUMERS,
    safe_rlhf_data::CONSUMERS,
    gdpo::CONSUMERS,
    data_rows::CONSUMERS,
    lightrft_advantage::CONSUMERS,
    lightrft_loss::CONSUMERS,
    pop::CONSUMERS,
    preference::CONSUMERS,
    rank_list::CONSUMERS,
    rank_reward::CONSUMERS,
    rank_token::CONSUMERS,
    rank_loss::CONSUMERS,
    safe_rlhf::CONSUMERS,
    safe_rlhf_loss::CONSUMERS,
    safer_judge::CONSUMERS,
    safer_steer::CONSUMERS,
    safework::CONSUMERS,
    score_model::CONSUMERS,
    supervised::CONSUMERS,
    safework_verdict::CONSUMERS,
    verl_loss::CONSUMERS,
    verl_policy::CONSUMERS,
    verl_kl::CONSUMERS,
    verl_advantage::CONSUMERS,
];

#[test]
fn golden() {
    let own = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let other = std::env::var_os("GOLDEN").filter(|folder| !folder.is_empty());
    // Cargo runs tests in the package's folder; a relative path is meant from the repository's.
    let root = other.clone().map_or(own.clone(), |folder| own.join("../..").join(folder));
    let files = GoldenFile::all(&root).unwrap();
    assert!(!files.is_empty(), "no golden files in {}", root.display());

    let mut faults = Vec::new();
    println!("{:<56} {:>5} {:>8} {:>13}", "file", "cases", "numbers", "largest error");
    for file in &files {
        let Some((_, how)) = CONSUMERS.iter().copied().flatten().find(|(key, _)| *key == file.key)
        else {
            faults.push(format!("{}: nothing checks this file", file.key));
            continue;
        };
        check(file, *how, &mut faults);
    }
    if other.is_none() {
        for (key, _) in CONSUMERS.iter().copied().flatten() {
            if !files.iter().any(|file| file.key == *key) {
                faults.push(format!("{key}: its consumer has no file"));
            }
        }
    }
    let cases: usize = files.iter().map(|file| file.cases.len()).sum();
    println!("{} files, {cases} cases, {} faults", files.len(), faults.len());
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[allow(clippy::print_stdout, reason = "the report that `make golden` is for")]
fn check(file: &GoldenFile, how: Check, faults: &mut Vec<String>) {
    let mut whole = Tally::default();
    for (index, case) in file.cases.iter().enumerate() {
        if let Err(fault) = check_case(how, case, file.tolerance, &mut whole) {
            faults.push(format!("{} case {index} ({}): {fault}", file.key, case.name));
        }
    }
    println!(
        "{:<56} {:>5} {:>8} {:>13.3e}{}",
        file.key,
        file.cases.len(),
        whole.agreement.numbers,
        whole.agreement.largest_error,
        whole.notes(how)
    );
}

/// What the cases of a file came to.
#[derive(Default)]
struct Tally {
    agreement: Agreement,
    refused: usize,
    refused_nan: usize,
}

impl Tally {
    fn add(&mut self, one: Agreement) {
        self.agreement.largest_error = self.agreement.largest_error.max(one.largest_error);
        self.agreement.numbers += one.numbers;
        self.agreement.defined += one.defined;
    }

    fn notes(&self, how: Check) -> String {
        let mut notes = String::new();
        if matches!(how, Check::Invariants(_)) {
            notes += "  invariants only: the reference's random generator decides the rest";
        }
        for (count, what) in [
            (self.refused, "refused as by the reference"),
            (self.refused_nan, "refused by name where the reference has NaN"),
            (self.agreement.defined, "defined where the reference has NaN"),
        ] {
            if count > 0 {
                notes += &format!("  {count} {what}");
            }
        }
        notes
    }
}

fn check_case(
    how: Check,
    case: &Case,
    tolerance: Tolerance,
    tally: &mut Tally,
) -> Result<(), String> {
    let got = match (how, &case.outcome) {
        (Check::Result(ours), _) => ours(case).map(|got| (got, None)),
        (Check::Invariants(ours), Outcome::Returned(expected)) => {
            ours(case, expected).map(|(got, expected)| (got, Some(expected)))
        }
        (Check::Invariants(ours), Outcome::Raised(_)) => {
            ours(case, &Value::Null).map(|(got, expected)| (got, Some(expected)))
        }
    };
    match (got, &case.outcome) {
        (Ok((got, projected)), Outcome::Returned(expected)) => {
            let expected = projected.as_ref().unwrap_or(expected);
            let one =
                compare(&got, expected, tolerance).map_err(|mismatch| mismatch.to_string())?;
            tally.add(one);
        }
        (Err(Failure::Refused(_)), Outcome::Raised(_)) => tally.refused += 1,
        (Err(Failure::Refused(_)), Outcome::Returned(expected)) if holds_nan(expected) => {
            tally.refused_nan += 1;
        }
        (Ok((got, _)), Outcome::Raised(exception)) => {
            return Err(format!("got {got}, the reference raised {exception}"));
        }
        (Err(failure), _) => return Err(failure.to_string()),
    }
    Ok(())
}
