//! Optimiser steps that were left out for a gradient that is not finite: told, never silent.

use super::Figures;
use crate::job::events::EventLog;

/// The figure that every update has.
const SKIPPED: &str = "skipped_steps";

/// Warns watchers when an update skipped optimiser steps.
pub(super) fn warn_of_skipped(events: &EventLog, stage: &str, step: u64, figures: &Figures) {
    if let Some(text) = notice(stage, step, figures) {
        events.notice("warn", text);
    }
}

fn notice(stage: &str, step: u64, figures: &Figures) -> Option<String> {
    let skipped = figures.get(SKIPPED).copied().filter(|skipped| *skipped > 0.0)?;
    Some(format!(
        "step {step} of {stage}: {skipped} optimiser step(s) skipped, the gradient was not finite"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_skipped_steps_are_told() {
        let figures = |skipped| Figures::from([(SKIPPED.to_owned(), skipped)]);
        assert_eq!(notice("sft", 3, &figures(0.0)), None);
        let text = notice("sft", 3, &figures(1.0)).unwrap();
        assert!(text.contains("step 3 of sft: 1 optimiser step(s) skipped"), "{text}");
    }
}
