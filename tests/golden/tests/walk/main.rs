//! Checks every golden file: `make golden`, or `GOLDEN=<folder>` for another folder.
//!
//! [`CONSUMERS`] says what checks which file. A file without a consumer fails the test, and so
//! does a consumer without a file (in the project's own folder).

use std::path::PathBuf;

use plumb_golden::{Agreement, Case, Failure, GoldenFile, Outcome, compare};
use serde_json::Value;

mod lightrft_advantage;
mod lightrft_loss;
mod safe_rlhf;
mod safer_steer;
mod safework;
mod tensors;
mod verl_advantage;
mod verl_kl;
mod verl_loss;

/// Runs our function on one case and shapes the result like the reference's.
type Consumer = fn(&Case) -> Result<Value, Failure>;

const CONSUMERS: &[(&str, Consumer)] = &[
    ("lightrft/advantage_compute", lightrft_advantage::compute),
    ("lightrft/compute_approx_kl", lightrft_advantage::approx_kl),
    ("lightrft/compute_reward", lightrft_advantage::token_reward),
    ("lightrft/kl_controller", lightrft_advantage::kl_controller),
    ("lightrft/overlong_penalty", lightrft_advantage::overlong),
    ("lightrft/policy_loss", lightrft_loss::policy),
    ("lightrft/preprocess_rewards", lightrft_advantage::preprocess_rewards),
    ("lightrft/value_loss", lightrft_loss::value),
    ("safe_rlhf/reward_model_loss", safe_rlhf::reward_model_loss),
    ("safer_steer/repetition_ratio", safer_steer::repetition_ratio),
    ("safework/format_and_rule_rewards", safework::format_and_rule),
    ("safework/mix_rewards", safework::mix_rewards),
    ("verl/agg_loss", verl_loss::agg_loss),
    ("verl/apply_kl_penalty", verl_kl::apply_kl_penalty),
    ("verl/compute_gae_advantage_return", verl_advantage::gae),
    ("verl/compute_grpo_outcome_advantage", verl_advantage::grpo),
    ("verl/compute_grpo_vectorized_outcome_advantage", verl_advantage::grpo),
    ("verl/compute_policy_loss_vanilla", verl_loss::policy_vanilla),
    ("verl/compute_rloo_outcome_advantage", verl_advantage::rloo),
    ("verl/compute_rloo_vectorized_outcome_advantage", verl_advantage::rloo_vectorized),
    ("verl/compute_value_loss", verl_loss::value),
    ("verl/dapo_overlong_penalty", verl_advantage::overlong),
    ("verl/entropy", verl_loss::entropy),
    ("verl/kl_controllers", verl_kl::controllers),
    ("verl/kl_penalty", verl_kl::kl_penalty),
    ("verl/logprobs_from_logits", verl_loss::log_probs),
    ("verl/masked_stats", verl_advantage::masked_stats),
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
        let Some((_, consumer)) = CONSUMERS.iter().find(|(key, _)| *key == file.key) else {
            faults.push(format!("{}: nothing checks this file", file.key));
            continue;
        };
        check(file, *consumer, &mut faults);
    }
    if other.is_none() {
        for (key, _) in CONSUMERS {
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
fn check(file: &GoldenFile, consumer: Consumer, faults: &mut Vec<String>) {
    let mut whole = Agreement::default();
    let mut refused = 0;
    for (index, case) in file.cases.iter().enumerate() {
        let fault = match (consumer(case), &case.outcome) {
            (Ok(got), Outcome::Returned(expected)) => {
                match compare(&got, expected, file.tolerance) {
                    Ok(one) => {
                        whole.largest_error = whole.largest_error.max(one.largest_error);
                        whole.numbers += one.numbers;
                        whole.defined += one.defined;
                        continue;
                    }
                    Err(mismatch) => mismatch.to_string(),
                }
            }
            (Err(Failure::Refused(_)), Outcome::Raised(_)) => {
                refused += 1;
                continue;
            }
            (Ok(got), Outcome::Raised(exception)) => {
                format!("got {got}, the reference raised {exception}")
            }
            (Err(failure), _) => failure.to_string(),
        };
        faults.push(format!("{} case {index} ({}): {fault}", file.key, case.name));
    }
    let mut notes = String::new();
    if refused > 0 {
        notes += &format!("  {refused} refused as by the reference");
    }
    if whole.defined > 0 {
        notes += &format!("  {} defined where the reference has NaN", whole.defined);
    }
    println!(
        "{:<56} {:>5} {:>8} {:>13.3e}{notes}",
        file.key,
        file.cases.len(),
        whole.numbers,
        whole.largest_error
    );
}
