//! When which phase ran: a picture of who worked when.

use std::fmt::Write as _;

use super::escape;

/// One stretch of work.
#[derive(Debug, Clone, PartialEq)]
pub struct Span {
    /// Row of the picture: a stage or a phase.
    pub lane: String,
    /// What it was, for the tooltip.
    pub text: String,
    /// Seconds since the job began.
    pub start: f64,
    /// Seconds since the job began.
    pub end: f64,
    /// Whether it ended well.
    pub ok: bool,
}

const WIDTH: f64 = 920.0;
const LEFT: f64 = 110.0;
const ROW: f64 = 20.0;

/// The picture; lanes in the order of their first span.
pub(super) fn svg(spans: &[Span]) -> String {
    let Some(end) = spans.iter().map(|s| s.end).reduce(f64::max).filter(|e| *e > 0.0) else {
        return String::new();
    };
    let mut lanes: Vec<&str> = Vec::new();
    for span in spans {
        if !lanes.contains(&span.lane.as_str()) {
            lanes.push(&span.lane);
        }
    }
    let x = |secs: f64| LEFT + secs / end * (WIDTH - LEFT - 10.0);
    let height = ROW * lanes.len() as f64 + 24.0;
    let mut svg =
        format!("<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"timeline\">");
    for (row, lane) in lanes.iter().enumerate() {
        let top = row as f64 * ROW;
        let _ = write!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LEFT - 8.0,
            top + 13.0,
            escape(lane)
        );
        for span in spans.iter().filter(|s| s.lane == *lane) {
            let width = (x(span.end) - x(span.start)).max(0.6);
            let class = if span.ok { format!("b{}", row % 6) } else { "lost".to_owned() };
            let _ = write!(
                svg,
                "<rect class=\"{class}\" x=\"{:.1}\" y=\"{:.1}\" width=\"{width:.1}\" \
                 height=\"{:.1}\"><title>{} {:.1} s to {:.1} s</title></rect>",
                x(span.start),
                top + 3.0,
                ROW - 6.0,
                escape(&span.text),
                span.start,
                span.end
            );
        }
    }
    for tick in 0..=4 {
        let secs = end * f64::from(tick) / 4.0;
        let _ = write!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{secs:.0} s</text>",
            x(secs),
            height - 6.0
        );
    }
    svg.push_str("</svg>");
    svg
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_lane_is_a_row_and_a_lost_phase_shows() {
        let span = |lane: &str, start, end, ok| Span {
            lane: lane.into(),
            text: format!("{lane} 1"),
            start,
            end,
            ok,
        };
        let svg = svg(&[
            span("generate", 0.0, 1.0, true),
            span("update", 1.0, 2.0, false),
            span("generate", 2.0, 3.0, true),
        ]);
        assert_eq!(svg.matches("text-anchor=\"end\"").count(), 2);
        assert_eq!(svg.matches("class=\"b0\"").count(), 2);
        assert_eq!(svg.matches("class=\"lost\"").count(), 1);
    }

    #[test]
    fn no_spans_no_picture() {
        assert_eq!(svg(&[]), "");
    }
}
