//! The learning rates that a recipe's optimiser table asks for.

use plumb_algo::AlgoError;
use plumb_algo::learning_rate::{Course, LearningRate, StepSchedule};
use plumb_config::{OptimizerConfig, Schedule};

/// The rates of a run of `steps` steps.
///
/// # Errors
/// Values that the recipe's validation refuses, too.
pub fn learning_rate(config: &OptimizerConfig, steps: u64) -> Result<LearningRate, AlgoError> {
    let (peak, floor) = (config.learning_rate, config.min_learning_rate_ratio);
    let course = match config.schedule {
        Schedule::Constant => Course::Constant,
        Schedule::Linear => Course::Linear { floor },
        Schedule::Cosine => Course::Cosine { floor },
        Schedule::Steps => Course::Steps(StepSchedule::new(peak, config.rates.clone())?),
    };
    LearningRate::new(peak, config.warmup(steps), steps, course)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(more: &str) -> Vec<f64> {
        let config = toml::from_str(&format!("learning_rate = 1.0\n{more}")).unwrap();
        let rate = learning_rate(&config, 5).unwrap();
        (0..5).map(|step| rate.rate(step)).collect()
    }

    #[test]
    fn every_key_of_the_schedule_is_heard() {
        assert_eq!(rates("warmup_steps = 1\nschedule = 'linear'"), [0.5, 1.0, 0.75, 0.5, 0.25]);
        assert_eq!(rates("warmup_ratio = 0.2\nschedule = 'linear'"), [0.5, 1.0, 0.75, 0.5, 0.25]);
        let floored = rates("warmup_steps = 1\nschedule = 'cosine'\nmin_learning_rate_ratio = 0.5");
        assert!((floored[3] - 0.75).abs() < 1e-12, "{floored:?}");
        assert_eq!(rates("schedule = 'steps'\nrates = [[3, 0.1]]"), [1.0, 1.0, 1.0, 0.1, 0.1]);
    }
}
