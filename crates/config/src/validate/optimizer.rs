//! Values of the optimiser out of their domain.

use super::Findings;
use crate::{OptimizerConfig, ParameterGroupConfig, Schedule};

pub(super) fn optimizer(key: &str, o: &OptimizerConfig, found: &mut Findings) {
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
    check_schedule(key, o, found);
    for pattern in &o.freeze {
        pattern_stands(&format!("{key}.freeze"), pattern, found);
    }
    for (index, group) in o.group.iter().enumerate() {
        check_group(&format!("{key}.group[{index}]"), group, found);
    }
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

fn check_schedule(key: &str, o: &OptimizerConfig, found: &mut Findings) {
    found.require(
        o.warmup_ratio.is_none_or(|ratio| (0.0..=1.0).contains(&ratio) && o.warmup_steps == 0),
        &format!("{key}.warmup_ratio"),
        format!("{:?} beside warmup_steps = {}", o.warmup_ratio, o.warmup_steps),
        "write a number in [0, 1], and leave warmup_steps out",
    );
    let falls = matches!(o.schedule, Schedule::Linear | Schedule::Cosine);
    let floor = o.min_learning_rate_ratio;
    found.require(
        floor == 0.0 || (falls && (0.0..=1.0).contains(&floor)),
        &format!("{key}.min_learning_rate_ratio"),
        format!("{floor} with schedule = {:?}", o.schedule),
        "write a number in [0, 1] with schedule = \"linear\" or \"cosine\", or leave it out",
    );
    let sound = |(_, rate): &(u64, f64)| rate.is_finite() && *rate > 0.0;
    let ordered = o.rates.windows(2).all(|pair| pair[0].0 < pair[1].0);
    found.require(
        o.rates.is_empty() != (o.schedule == Schedule::Steps)
            && o.rates.iter().all(sound)
            && ordered,
        &format!("{key}.rates"),
        format!("{:?} with schedule = {:?}", o.rates, o.schedule),
        "give pairs of a step and a rate > 0, in order, with schedule = \"steps\" and only then",
    );
}

fn check_group(key: &str, group: &ParameterGroupConfig, found: &mut Findings) {
    pattern_stands(&format!("{key}.pattern"), &group.pattern, found);
    let rates = [group.learning_rate, group.learning_rate_scale];
    let positive = |rate: &f64| rate.is_finite() && *rate > 0.0;
    found.require(
        rates.iter().flatten().all(positive) && rates.iter().flatten().count() < 2,
        &format!("{key}.learning_rate"),
        format!("learning_rate {:?}, learning_rate_scale {:?}", rates[0], rates[1]),
        "write one of them, a number > 0 (what is not to move at all belongs in freeze)",
    );
    found.require(
        group.weight_decay.is_none_or(|decay| decay.is_finite() && decay >= 0.0),
        &format!("{key}.weight_decay"),
        format!("{:?}", group.weight_decay),
        "write a number >= 0",
    );
    found.require(
        group.weight_decay.is_some() || rates.iter().any(Option::is_some),
        key,
        "it has nothing of its own",
        "write learning_rate, learning_rate_scale or weight_decay",
    );
}

fn pattern_stands(key: &str, pattern: &str, found: &mut Findings) {
    if let Err(error) = regex::Regex::new(pattern) {
        found.require(false, key, error.to_string(), "write a regular expression");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert_named(&with("freeze = ['embed', 'norm(']"), &["freeze"]);
        assert_named(&with("warmup_ratio = 0.1\nwarmup_steps = 3"), &["warmup_ratio"]);
        assert_named(&with("min_learning_rate_ratio = 0.1"), &["min_learning_rate_ratio"]);
        assert_named(&with("schedule = 'cosine'\nmin_learning_rate_ratio = 0.1"), &[]);
        assert_named(&with("schedule = 'steps'"), &["rates"]);
        assert_named(&with("rates = [[8, 1e-7]]"), &["rates"]);
        assert_named(&with("schedule = 'steps'\nrates = [[8, 1e-7], [8, 1e-8]]"), &["rates"]);
        assert_named(&with("schedule = 'steps'\nrates = [[8, 1e-7]]"), &[]);
        let group = |keys: &str| with(&format!("[[group]]\n{keys}"));
        assert_named(&group("pattern = 'norm'\nweight_decay = 0.0"), &[]);
        assert_named(&group("pattern = 'norm'"), &["group[0]"]);
        assert_named(&group("pattern = '['\nlearning_rate = 1e-5"), &["group[0].pattern"]);
        let both = "pattern = 'a'\nlearning_rate = 1e-5\nlearning_rate_scale = 0.1";
        assert_named(&group(both), &["group[0].learning_rate"]);
        assert_named(&group("pattern = 'a'\nweight_decay = -1.0"), &["group[0].weight_decay"]);
    }
}
