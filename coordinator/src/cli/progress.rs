//! The live view of a job: a bar on a terminal, plain lines elsewhere.

use std::collections::{BTreeMap, HashMap};
use std::io::IsTerminal as _;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use plumb_proto::job::job_event::Event;
use plumb_proto::job::{JobEvent, StageFinished, StageStarted, StepFinished};
use plumb_telemetry::metric;

use crate::report::figure;

/// Shows events as they come.
pub(super) struct Progress {
    bar: Option<ProgressBar>,
    terminal: bool,
    began: Option<(u64, u64)>,
}

impl Progress {
    pub(super) fn new() -> Self {
        Self { bar: None, terminal: std::io::stderr().is_terminal(), began: None }
    }

    pub(super) fn show(&mut self, event: &JobEvent) {
        match &event.event {
            Some(Event::StageStarted(started)) => self.stage_started(started, event.unix_millis),
            Some(Event::StepFinished(step)) => self.step_finished(step, event.unix_millis),
            Some(Event::StageFinished(finished)) => self.stage_finished(finished),
            Some(Event::Notice(notice)) => {
                self.line(&format!("{}: {}", notice.level, notice.text));
            }
            Some(Event::JobFinished(_)) => self.clear(),
            None => {}
        }
    }

    /// Removes the bar, for example before an error is printed.
    pub(super) fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    fn stage_started(&mut self, stage: &StageStarted, millis: u64) {
        self.clear();
        self.began = Some((millis, 0));
        let title =
            format!("[{}/{}] {} ({})", stage.index + 1, stage.stages, stage.name, stage.kind);
        if !self.terminal {
            eprintln!("{title}");
            return;
        }
        let bar =
            ProgressBar::with_draw_target(Some(stage.steps), ProgressDrawTarget::stderr_with_hz(8));
        let template = "{prefix} {spinner} {bar:24} {pos}/{len} {elapsed} {wide_msg}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_prefix(title);
        bar.enable_steady_tick(Duration::from_millis(200));
        self.bar = Some(bar);
    }

    fn step_finished(&mut self, step: &StepFinished, millis: u64) {
        let eta = self.began.and_then(|(start, _)| {
            let per_step = millis.saturating_sub(start) as f64 / step.step.max(1) as f64;
            (step.steps > step.step).then(|| per_step * (step.steps - step.step) as f64 / 1e3)
        });
        let text = step_text(&step.metrics, eta);
        match &self.bar {
            Some(bar) => {
                bar.set_length(step.steps);
                bar.set_position(step.step);
                bar.set_message(text);
            }
            None => eprintln!("  {} {}/{}  {text}", step.stage, step.step, step.steps),
        }
    }

    fn stage_finished(&mut self, stage: &StageFinished) {
        self.clear();
        // The last step's figures were shown with the step.
        let own = |name: &str| !name.contains('/') || name == "kl/max";
        let figures: Vec<String> = sorted(&stage.metrics)
            .into_iter()
            .filter(|(name, _)| own(name))
            .map(|(name, value)| format!("{name} {}", figure(value)))
            .collect();
        let text =
            format!("{} done in {:.1} s  {}", stage.stage, stage.seconds, figures.join("  "));
        eprintln!("  {}", text.trim_end());
    }

    fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{text}")),
            None => eprintln!("{text}"),
        }
    }
}

/// Reward, its components, KL, speed, time to go; for a stage without rewards its own figures.
fn step_text(metrics: &HashMap<String, f64>, eta_secs: Option<f64>) -> String {
    let mut parts = Vec::new();
    let mut take = |name: &str, text: &str| {
        if let Some(value) = metrics.get(name) {
            parts.push(format!("{text} {}", figure(*value)));
        }
    };
    take(metric::REWARD_MEAN, "reward");
    for name in sorted(metrics).keys() {
        let shown = name.strip_prefix("reward/").filter(|rest| {
            !rest.contains('/') && !["mean", "failed", "equal_groups"].contains(rest)
        });
        if let Some(component) = shown {
            take(name, component);
        }
    }
    take(metric::COST_MEAN, "cost");
    take(metric::LAMBDA, "lambda");
    take(metric::KL_PER_TOKEN, "kl");
    take("loss", "loss");
    take("accuracy", "accuracy");
    take("heldout_loss", "held-out loss");
    take("heldout_accuracy", "held-out accuracy");
    for name in [metric::TOKENS_PER_SECOND, metric::GENERATED_PER_SECOND] {
        if let Some(value) = metrics.get(name) {
            parts.push(format!("{value:.0} tokens/s"));
            break;
        }
    }
    if let Some(eta) = eta_secs {
        parts.push(format!("ETA {}", duration(eta)));
    }
    parts.join("  ")
}

fn sorted(metrics: &HashMap<String, f64>) -> BTreeMap<&str, f64> {
    metrics.iter().map(|(name, value)| (name.as_str(), *value)).collect()
}

/// `1:05` for 65 seconds.
fn duration(secs: f64) -> String {
    let secs = secs.round() as u64;
    format!("{}:{:02}", secs / 60, secs % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_shows_reward_components_leash_speed_and_time_to_go() {
        let metrics = [
            ("reward/mean", 0.5),
            ("reward/safety_rm", 0.75),
            ("reward/safety/mean", 0.6),
            ("reward/failed", 0.0),
            ("kl/per_token", 0.0125),
            ("step/tokens_per_second", 512.4),
        ];
        let metrics = metrics.iter().map(|(n, v)| ((*n).to_owned(), *v)).collect();
        assert_eq!(
            step_text(&metrics, Some(65.0)),
            "reward 0.5  safety_rm 0.75  kl 0.0125  512 tokens/s  ETA 1:05"
        );
    }
}
