//! Adapter values out of their domain.

use super::Findings;
use crate::LoraConfig;

pub(super) fn lora(key: &str, lora: &LoraConfig, found: &mut Findings) {
    found.require(lora.rank >= 1, &format!("{key}.rank"), "0", "write at least 1");
    found.require(
        lora.alpha.is_finite() && lora.alpha > 0.0,
        &format!("{key}.alpha"),
        lora.alpha.to_string(),
        "write a number > 0, often the rank or twice the rank",
    );
    found.require(
        (0.0..1.0).contains(&lora.dropout),
        &format!("{key}.dropout"),
        lora.dropout.to_string(),
        "write a number in [0, 1)",
    );
    let names: Vec<_> = lora.targets.iter().map(|target| target.as_str()).collect();
    let twice = (1..names.len()).any(|at| names[..at].contains(&names[at]));
    found.require(
        !names.is_empty() && !twice,
        &format!("{key}.targets"),
        format!("{names:?}"),
        "name at least one matrix, each once",
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_values_are_named_with_their_key() {
        let text = "rank = 0\nalpha = -1.0\ndropout = 1.0\ntargets = ['q_proj', 'q_proj']";
        let mut found = Findings::default();
        lora("stage[3].lora", &toml::from_str(text).unwrap(), &mut found);
        let keys: Vec<_> = found.0.iter().map(|contradiction| contradiction.key.as_str()).collect();
        assert_eq!(
            keys,
            ["rank", "alpha", "dropout", "targets"].map(|k| format!("stage[3].lora.{k}"))
        );
        let mut fine = Findings::default();
        lora("algorithm.lora", &toml::from_str("rank = 8\nalpha = 16").unwrap(), &mut fine);
        assert!(fine.0.is_empty());
    }
}
