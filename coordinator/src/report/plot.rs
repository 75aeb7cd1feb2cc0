//! Line plots as inline SVG.

use std::fmt::Write as _;

use super::{escape, figure};

/// One named curve over the steps.
pub(super) struct Curve {
    pub(super) name: String,
    /// (step, value); values that are not finite leave a gap.
    pub(super) points: Vec<(f64, f64)>,
}

const WIDTH: f64 = 440.0;
const HEIGHT: f64 = 190.0;
const LEFT: f64 = 52.0;
const RIGHT: f64 = 10.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 24.0;

/// A plot of curves over steps; `line` draws a horizontal bound.
pub(super) fn line_plot(title: &str, curves: &[Curve], line: Option<(&str, f64)>) -> String {
    let points = || curves.iter().flat_map(|c| &c.points).filter(|p| p.1.is_finite());
    if points().next().is_none() {
        return String::new();
    }
    let (x_min, x_max) = range(points().map(|p| p.0));
    let (mut y_min, mut y_max) = range(points().map(|p| p.1));
    if let Some((_, bound)) = line {
        // A bound far above the curve would flatten it; it is then named in the title only.
        if bound <= y_max + 2.0 * (y_max - y_min).max(y_max.abs()) {
            y_min = y_min.min(bound);
            y_max = y_max.max(bound);
        }
    }
    if y_max - y_min < 1e-12 {
        y_min -= 0.5 * y_min.abs().max(1e-6);
        y_max += 0.5 * y_max.abs().max(1e-6);
    }
    let x = |v: f64| LEFT + (v - x_min) / (x_max - x_min).max(1e-12) * (WIDTH - LEFT - RIGHT);
    let y = |v: f64| TOP + (y_max - v) / (y_max - y_min) * (HEIGHT - TOP - BOTTOM);
    let mut svg = format!(
        "<figure><figcaption>{}</figcaption><svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" \
         aria-label=\"{}\">",
        escape(title),
        escape(title)
    );
    for tick in 0..=3 {
        let value = y_min + (y_max - y_min) * f64::from(tick) / 3.0;
        let at = y(value);
        let _ = write!(
            svg,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            WIDTH - RIGHT,
            LEFT - 6.0,
            at + 3.5,
            figure(value)
        );
    }
    for value in [x_min, x_max] {
        let anchor = if value == x_min { "start" } else { "end" };
        let _ = write!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">{}</text>",
            x(value),
            HEIGHT - 8.0,
            figure(value)
        );
    }
    if let Some((name, bound)) = line.filter(|(_, b)| (y_min..=y_max).contains(b)) {
        let at = y(bound);
        let _ = write!(
            svg,
            "<line class=\"bound\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            WIDTH - RIGHT,
            WIDTH - RIGHT,
            at - 4.0,
            escape(name)
        );
    }
    for (index, curve) in curves.iter().enumerate() {
        for run in curve.points.split(|p| !p.1.is_finite()).filter(|run| !run.is_empty()) {
            let path: Vec<String> =
                run.iter().map(|p| format!("{:.1},{:.1}", x(p.0), y(p.1))).collect();
            let _ =
                write!(svg, "<polyline class=\"c{}\" points=\"{}\"/>", index % 6, path.join(" "));
        }
    }
    svg.push_str("</svg><p class=\"legend\">");
    for (index, curve) in curves.iter().enumerate().filter(|_| curves.len() > 1) {
        let _ = write!(svg, "<span class=\"k{}\"></span>{} ", index % 6, escape(&curve.name));
    }
    svg.push_str("</p></figure>");
    svg
}

fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    values.fold((f64::INFINITY, f64::NEG_INFINITY), |(lo, hi), v| (lo.min(v), hi.max(v)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(points: &[(f64, f64)]) -> Curve {
        Curve { name: "<r>".into(), points: points.to_vec() }
    }

    #[test]
    fn ends_of_a_curve_touch_the_ends_of_the_axes() {
        let svg = line_plot("reward", &[curve(&[(1.0, 0.0), (3.0, 2.0)])], None);
        assert!(svg.contains(&format!("points=\"{LEFT:.1},{:.1} ", HEIGHT - BOTTOM)), "{svg}");
        assert!(svg.contains(&format!(" {:.1},{TOP:.1}\"", WIDTH - RIGHT)), "{svg}");
    }

    #[test]
    fn a_value_that_is_not_finite_is_a_gap() {
        let points = [(0.0, 1.0), (1.0, f64::NAN), (2.0, 2.0), (3.0, 1.0)];
        let svg = line_plot("loss", &[curve(&points)], None);
        assert_eq!(svg.matches("<polyline").count(), 2);
        assert!(!svg.contains("NaN"));
    }

    #[test]
    fn nothing_to_plot_is_no_plot_and_a_flat_curve_is_one() {
        assert_eq!(line_plot("x", &[curve(&[])], None), "");
        assert!(!line_plot("x", &[curve(&[(0.0, 0.0), (1.0, 0.0)])], None).contains("NaN"));
    }
}
