//! Values of the optimiser out of their domain.

use super::Findings;

pub(super) fn optimizer(key: &str, o: &crate::OptimizerConfig, found: &mut Findings) {
    let beta = |b: f64| (0.0..1.0).contains(&b);
    let positive = |v: f64| v.is_finite() && v > 0.0;
    found.require(
        positive(o.learning_rate),
        &format!("{key}.learning_rate"),
        o.learning_rate.to_string(),
        "write a number > 0",
    );
    found.require(
        beta(o.betas[0]) && beta(o.betas[1]),
        &format!("{key}.betas"),
        format!("{:?}", o.betas),
        "write two numbers in [0, 1)",
    );
    found.require(
        positive(o.eps) && positive(o.max_grad_norm) && o.weight_decay >= 0.0,
        key,
        format!(
            "eps {}, max_grad_norm {}, weight_decay {}",
            o.eps, o.max_grad_norm, o.weight_decay
        ),
        "write eps > 0, max_grad_norm > 0, weight_decay >= 0",
    );
    if let Some(ema) = &o.ema {
        found.require(
            (0.0..=1.0).contains(&ema.decay),
            &format!("{key}.ema.decay"),
            ema.decay.to_string(),
            "write a number in [0, 1], often just below 1",
        );
        found.require(ema.interval >= 1, &format!("{key}.ema.interval"), "0", "write at least 1");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::OptimizerConfig;

    #[track_caller]
    fn assert_named(text: &str, expected: &[&str]) {
        let config: OptimizerConfig = toml::from_str(text).unwrap();
        let mut found = Findings::default();
        optimizer("algorithm.optimizer", &config, &mut found);
        let keys: Vec<_> = found.0.iter().map(|contradiction| contradiction.key.as_str()).collect();
        let expected: Vec<_> =
            expected.iter().map(|key| format!("algorithm.optimizer.{key}")).collect();
        assert_eq!(keys, expected, "{text}");
    }

    #[test]
    fn wrong_values_are_named_with_their_key() {
        let with = |more: &str| format!("learning_rate = 1e-4\n{more}");
        assert_named("learning_rate = 0.0", &["learning_rate"]);
        assert_named(&with("betas = [0.9, 1.0]"), &["betas"]);
        assert_named(&with("ema = { decay = 1.5, interval = 0 }"), &["ema.decay", "ema.interval"]);
        assert_named(&with("ema = { decay = 0.992 }"), &[]);
    }
}
