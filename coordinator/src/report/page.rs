//! The page.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use plumb_telemetry::metric;

use super::plot::{Curve, line_plot};
use super::timeline::{self, Span};
use super::{escape, figure};
use crate::job::footprint::Footprint;
use crate::job::summary::{AnswerPair, MeasureResult, Summary};

/// The figures of one step.
#[derive(Debug, Clone, PartialEq)]
pub struct StepRecord {
    /// Its stage.
    pub stage: String,
    /// Counted from 1.
    pub step: u64,
    /// Figures by name.
    pub metrics: BTreeMap<String, f64>,
}

/// What the page is made of.
pub struct Report<'a> {
    /// Results.
    pub summary: &'a Summary,
    /// The steps of all stages; a replayed step's last run counts.
    pub steps: &'a [StepRecord],
    /// When what ran.
    pub spans: &'a [Span],
    /// The recipe as it ran.
    pub recipe: &'a str,
}

impl Report<'_> {
    /// The page as HTML.
    #[must_use]
    pub fn html(&self) -> String {
        let s = self.summary;
        let mut out = String::new();
        let _ = write!(
            out,
            "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta \
             name=\"viewport\" content=\"width=device-width, initial-scale=1\"><title>{} · \
             Plumbline</title><style>{STYLE}</style></head><body><main><h1>{}</h1><p>{} · seed \
             {} · {} · {:.0} s · {} restarts</p>",
            escape(&s.name),
            escape(&s.name),
            escape(&s.model),
            s.seed,
            escape(&s.outcome),
            s.seconds,
            s.restarts
        );
        if !s.measures.is_empty() {
            out.push_str("<h2>Held-out prompts, before and after</h2>");
            out.push_str(&measures(&s.measures));
        }
        let _ = write!(
            out,
            "<p>KL per token to the reference: {} in the last step, {} at most; bound {} ({}).</p>",
            figure(s.kl.last),
            figure(s.kl.max),
            figure(s.kl.bound),
            if s.kl.within_bound { "held" } else { "exceeded" }
        );
        out.push_str(&self.plots());
        let timeline = timeline::svg(self.spans);
        if !timeline.is_empty() {
            let _ = write!(out, "<h2>Who worked when</h2>{timeline}");
        }
        if !s.answers.is_empty() {
            out.push_str("<h2>Answers</h2>");
            out.push_str(&answers(&s.answers));
        }
        out.push_str(&stages(s));
        if !s.memory.is_empty() {
            out.push_str(&memory(&s.memory));
        }
        let _ = write!(
            out,
            "<details><summary>Recipe as it ran</summary><pre>{}</pre></details></main></body>\
             </html>",
            escape(self.recipe)
        );
        out
    }

    fn plots(&self) -> String {
        let mut out = String::new();
        let stages: Vec<&str> = self.steps.iter().fold(Vec::new(), |mut names, s| {
            if !names.contains(&s.stage.as_str()) {
                names.push(&s.stage);
            }
            names
        });
        for stage in stages {
            let steps: Vec<&StepRecord> = self.steps.iter().filter(|s| s.stage == stage).collect();
            let _ = write!(out, "<h2>Stage {}</h2><div class=\"plots\">", escape(stage));
            for (title, names) in panels(&steps) {
                let curves: Vec<Curve> = names
                    .iter()
                    .map(|name| Curve {
                        name: name.clone(),
                        points: steps
                            .iter()
                            .filter_map(|s| Some((s.step as f64, *s.metrics.get(name)?)))
                            .collect(),
                    })
                    .collect();
                let bound = (title == metric::KL_PER_TOKEN && self.summary.kl.bound > 0.0)
                    .then_some(("bound", self.summary.kl.bound));
                out.push_str(&line_plot(&title, &curves, bound));
            }
            out.push_str("</div>");
        }
        out
    }
}

/// Which curves share a plot: component rewards of one label together, phase times together,
/// every other figure alone.
fn panels(steps: &[&StepRecord]) -> Vec<(String, Vec<String>)> {
    let names: BTreeSet<&String> = steps.iter().flat_map(|s| s.metrics.keys()).collect();
    let mut panels: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for name in names {
        let parts: Vec<&str> = name.split('/').collect();
        let panel = match parts.as_slice() {
            ["reward", label, _] => format!("reward of {label} prompts"),
            ["reward", "failed" | "equal_groups"] => name.clone(),
            ["reward", _] => "reward".to_owned(),
            ["seconds", _] => "seconds by phase".to_owned(),
            _ => name.clone(),
        };
        panels.entry(panel).or_default().push(name.clone());
    }
    panels.into_iter().collect()
}

fn measures(results: &[MeasureResult]) -> String {
    let mut out = String::from(
        "<table><thead><tr><th>measure</th><th>prompts</th><th>before</th><th>after</th>\
         <th>change</th><th>se</th><th>better by</th><th>n</th></tr></thead><tbody>",
    );
    for m in results {
        let gain = m.gain_in_se().map_or_else(|| "-".to_owned(), |g| format!("{g:+.1} se"));
        let class = match m.gain_in_se() {
            Some(g) if g > 3.0 => "up",
            Some(g) if g < -1.0 => "down",
            _ => "",
        };
        let _ = write!(
            out,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td>\
             <td class=\"{class}\">{gain}</td><td>{}</td></tr>",
            escape(&m.name),
            escape(m.label.as_deref().unwrap_or("all")),
            figure(m.before),
            figure(m.after),
            figure(m.after - m.before),
            figure(m.se),
            m.n
        );
    }
    out.push_str(
        "</tbody></table><p class=\"note\">se: standard error of the change, paired by prompt.</p>",
    );
    out
}

fn answers(pairs: &[AnswerPair]) -> String {
    let mut out = String::from(
        "<table class=\"answers\"><thead><tr><th>prompt</th><th>before</th><th>after</th></tr>\
         </thead><tbody>",
    );
    for pair in pairs {
        let _ = write!(
            out,
            "<tr><td><b>{}</b><br>{}</td><td>{}</td><td>{}</td></tr>",
            escape(&pair.label),
            escape(&pair.question),
            escape(&pair.before),
            escape(&pair.after)
        );
    }
    out.push_str("</tbody></table>");
    out
}

fn stages(summary: &Summary) -> String {
    let mut out = String::from(
        "<h2>Stages</h2><table><thead><tr><th>stage</th><th>seconds</th><th>figures</th></tr>\
         </thead><tbody>",
    );
    for (stage, seconds) in &summary.stage_seconds {
        let figures: Vec<String> = summary
            .stages
            .get(stage)
            .into_iter()
            .flatten()
            .map(|(name, value)| format!("{name} {}", figure(*value)))
            .collect();
        let _ = write!(
            out,
            "<tr><td>{}</td><td>{seconds:.1}</td><td>{}</td></tr>",
            escape(stage),
            escape(&figures.join(", "))
        );
    }
    out.push_str("</tbody></table>");
    out
}

/// What each role's largest process held, beside the prediction.
fn memory(footprints: &[Footprint]) -> String {
    let mib = |bytes: u64| bytes as f64 / f64::from(1u32 << 20);
    let mut out = String::from(
        "<h2>Memory of a process</h2><table><thead><tr><th>stage</th><th>role</th><th>processes</th>\
         <th>predicted MiB</th><th>measured MiB</th><th>ratio</th><th>by phase</th></tr></thead>\
         <tbody>",
    );
    for f in footprints {
        let phases = f.measured_by_phase.iter();
        let phases: Vec<_> = phases.map(|(name, &b)| format!("{name} {:.0}", mib(b))).collect();
        let class = if f.warning().is_some() { "down" } else { "" };
        let _ = write!(
            out,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{:.0}</td><td>{:.0}</td>\
             <td class=\"{class}\">{:.2}</td><td>{}</td></tr>",
            escape(&f.stage),
            escape(&f.role),
            f.ranks,
            mib(f.predicted_bytes),
            mib(f.measured_bytes),
            f.ratio(),
            escape(&phases.join(", "))
        );
    }
    out.push_str("</tbody></table>");
    out
}

const STYLE: &str = "\
:root{color-scheme:light dark;--ink:#1b1f24;--dim:#5c6670;--paper:#fff;--rule:#d8dde3;\
--c0:#2563a8;--c1:#b4530a;--c2:#2f7d3c;--c3:#8b3fa0;--c4:#a3293d;--c5:#3d7f86}\
@media(prefers-color-scheme:dark){:root{--ink:#e6e9ec;--dim:#98a2ad;--paper:#14171a;--rule:#343b42;\
--c0:#6fa8e8;--c1:#e8954f;--c2:#74c382;--c3:#c58ad6;--c4:#ec7b8c;--c5:#76bcc4}}\
body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,sans-serif}\
main{max-width:960px;margin:0 auto;padding:24px}h1{margin:0}h2{margin:32px 0 8px}\
table{border-collapse:collapse;width:100%}th,td{text-align:left;vertical-align:top;padding:5px 9px;\
border-bottom:1px solid var(--rule)}th{color:var(--dim);font-weight:600}\
.answers td{white-space:pre-wrap;overflow-wrap:anywhere;width:33%}\
.up{color:var(--c2);font-weight:600}.down{color:var(--c4);font-weight:600}\
.note,.legend,figcaption{color:var(--dim);font-size:13px}figure{margin:0}\
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(320px,1fr));gap:12px 24px}\
svg{width:100%;height:auto}svg text{fill:var(--dim);font-size:10.5px}.grid{stroke:var(--rule)}\
.bound{stroke:var(--c4);stroke-dasharray:5 4}polyline{fill:none;stroke-width:1.8}\
.c0{stroke:var(--c0)}.c1{stroke:var(--c1)}.c2{stroke:var(--c2)}.c3{stroke:var(--c3)}\
.c4{stroke:var(--c4)}.c5{stroke:var(--c5)}.b0{fill:var(--c0)}.b1{fill:var(--c1)}\
.b2{fill:var(--c2)}.b3{fill:var(--c3)}.b4{fill:var(--c5)}.b5{fill:var(--dim)}.lost{fill:var(--c4)}\
.legend span{display:inline-block;width:10px;height:10px;margin:0 5px 0 10px;border-radius:2px}\
.k0{background:var(--c0)}.k1{background:var(--c1)}.k2{background:var(--c2)}.k3{background:var(--c3)}\
.k4{background:var(--c4)}.k5{background:var(--c5)}\
pre{overflow:auto;background:color-mix(in srgb,var(--ink) 6%,transparent);padding:12px}\
details{margin-top:32px}";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::summary::KlSummary;

    #[test]
    fn the_page_has_plots_table_answers_and_nothing_from_outside() {
        let summary = Summary {
            name: "quick<start>".into(),
            outcome: "succeeded".into(),
            measures: vec![MeasureResult {
                name: "safety score".into(),
                label: Some("safety".into()),
                before: 0.25,
                after: 0.75,
                se: 0.05,
                n: 40,
                lower_is_better: false,
            }],
            kl: KlSummary { last: 0.01, max: 0.02, bound: 0.03, within_bound: true },
            answers: vec![AnswerPair {
                label: "safety".into(),
                question: "q".into(),
                before: "<script>".into(),
                after: "no".into(),
            }],
            memory: vec![Footprint {
                stage: "train".into(),
                role: "policy".into(),
                ranks: 2,
                predicted_bytes: 100 << 20,
                measured_bytes: 130 << 20,
                measured_by_phase: [("update".to_owned(), 130 << 20)].into(),
            }],
            ..Summary::default()
        };
        let steps: Vec<StepRecord> = (1..4)
            .map(|step| StepRecord {
                stage: "train".into(),
                step,
                metrics: [
                    ("reward/mean".to_owned(), step as f64),
                    ("kl/per_token".to_owned(), 0.01 * step as f64),
                ]
                .into(),
            })
            .collect();
        let report = Report { summary: &summary, steps: &steps, spans: &[], recipe: "a = 1" };
        let html = report.html();
        assert!(html.contains("+10.0 se"), "{html}");
        assert!(html.contains("<td class=\"down\">1.30</td><td>update 130</td>"), "{html}");
        assert_eq!(html.matches("<polyline").count(), 2);
        assert!(html.contains("class=\"bound\""));
        assert!(html.contains("quick&lt;start&gt;") && html.contains("&lt;script&gt;"));
        assert!(!html.contains("<script") && !html.contains("http"));
    }

    #[test]
    fn components_of_a_label_share_a_plot() {
        let metrics = ["reward/safety/rm", "reward/safety/mean", "reward/mean", "seconds/update"];
        let record = StepRecord {
            stage: "s".into(),
            step: 1,
            metrics: metrics.iter().map(|m| ((*m).to_owned(), 1.0)).collect(),
        };
        let panels = panels(&[&record]);
        assert_eq!(panels.len(), 3);
        assert!(panels.iter().any(|(t, n)| t == "reward of safety prompts" && n.len() == 2));
    }
}
