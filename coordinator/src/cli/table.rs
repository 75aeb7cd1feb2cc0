//! The table that stands at the end of a run.

use std::fmt::Write as _;
use std::path::Path;

use crate::job::summary::Summary;
use crate::report::figure;

/// Before/after figures, a few answers, and where everything lies.
pub(super) fn render(summary: &Summary, run_dir: &Path) -> String {
    let mut out = String::new();
    if !summary.measures.is_empty() {
        let mut rows = vec![
            ["held-out measure", "before", "after", "se", "better by", "n"].map(str::to_owned),
        ];
        for m in &summary.measures {
            let label = m.label.as_deref().unwrap_or("all");
            rows.push([
                format!("{} ({label})", m.name),
                figure(m.before),
                figure(m.after),
                figure(m.se),
                m.gain_in_se().map_or_else(|| "-".to_owned(), |g| format!("{g:+.1} se")),
                m.n.to_string(),
            ]);
        }
        out.push_str(&align(&rows));
        let kl = &summary.kl;
        let _ = writeln!(
            out,
            "KL per token {} (most {}, bound {}: {})",
            figure(kl.last),
            figure(kl.max),
            figure(kl.bound),
            if kl.within_bound { "held" } else { "exceeded" }
        );
    }
    for answer in &summary.answers {
        let _ = writeln!(out, "\n[{}] {}", answer.label, one_line(&answer.question, 110));
        let _ = writeln!(out, "  before: {}", one_line(&answer.before, 100));
        let _ = writeln!(out, "  after:  {}", one_line(&answer.after, 100));
    }
    let _ = writeln!(out, "\n{:.0} s; artefacts in {}", summary.seconds, run_dir.display());
    for (name, path) in &summary.artefacts {
        let _ = writeln!(out, "  {name:<10} {path}");
    }
    out
}

/// Columns of equal width: the first to the left, the others to the right.
pub(super) fn align<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|r| r[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..N).map(width).collect();
    let mut out = String::new();
    for row in rows {
        for (column, cell) in row.iter().enumerate() {
            let pad = " ".repeat(widths[column] - cell.chars().count());
            if column == 0 {
                let _ = write!(out, "{cell}{pad}");
            } else {
                let _ = write!(out, "  {pad}{cell}");
            }
        }
        out.push('\n');
    }
    out
}

/// Text on one line, cut to `most` characters.
fn one_line(text: &str, most: usize) -> String {
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if words.chars().count() <= most {
        return words;
    }
    words.chars().take(most - 1).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::summary::{AnswerPair, MeasureResult};

    #[test]
    fn the_table_names_measures_answers_and_artefacts() {
        let summary = Summary {
            measures: vec![MeasureResult {
                name: "reward".into(),
                label: None,
                before: 0.1,
                after: 0.4,
                se: 0.05,
                n: 8,
                lower_is_better: false,
            }],
            answers: vec![AnswerPair {
                label: "safety".into(),
                question: "a\nb".into(),
                before: "x".repeat(200),
                after: "no".into(),
            }],
            artefacts: [("report".to_owned(), "report.html".to_owned())].into(),
            ..Summary::default()
        };
        let text = render(&summary, Path::new("runs/a"));
        assert!(text.contains("reward (all)"), "{text}");
        assert!(text.contains("+6.0 se"), "{text}");
        assert!(text.contains("[safety] a b\n"), "{text}");
        assert!(text.contains("…"), "{text}");
        assert!(text.contains("report     report.html"), "{text}");
    }
}
