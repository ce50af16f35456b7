//! Bars: one panel for each case, one bar for each tunnel, the number at its end.
//!
//! Every panel has a scale of its own, because cases differ by orders of magnitude and are not to
//! be compared with each other; that is why there is no axis, and why every bar starts at zero.

use std::fmt::Write as _;

use super::metric::{Better, Metric};
use super::model::{CaseReport, MetricSummary, Report, TunnelReport};

/// Sizes in pixels.
const MARGIN: usize = 24;
const HEADER: usize = 64;
const FOOTER: usize = 44;
const WIDTH: usize = 2 * MARGIN + LABELS + BARS + NUMBERS;
const PANEL_TITLE: usize = 30;
const PANEL_GAP: usize = 22;
const ROW: usize = 26;
const BAR: usize = 16;
const LABELS: usize = 128;
const BARS: usize = 420;
/// For the numbers behind the bars.
const NUMBERS: usize = 200;

/// Colours of the known tunnels; relatives look alike, ours stands out.
const COLOURS: [(&str, &str); 7] = [
    ("raw", "#b0b6bc"),
    ("quinn-dp", "#8ebaf0"),
    ("quinn-dp-tuned", "#3b78d8"),
    ("rathole", "#c4a4e6"),
    ("rathole-noise", "#8e5cd2"),
    ("before", "#f7c18e"),
    ("qmux-dp", "#e8710a"),
];

/// For tunnels with labels of their own.
const OTHER_COLOURS: [&str; 4] = ["#0f9d58", "#db4478", "#0097a7", "#9e783c"];

fn colour(tunnel: &str, index: usize) -> &'static str {
    let known = COLOURS.iter().find(|(label, _)| *label == tunnel);
    known.map_or(OTHER_COLOURS[index % OTHER_COLOURS.len()], |it| it.1)
}

/// A picture under way. Writing to a text cannot fail.
struct Svg(String);

impl Svg {
    fn text(&mut self, (x, y): (usize, usize), style: &str, words: &str) {
        let words = words.replace('&', "&amp;").replace('<', "&lt;");
        let _ok = writeln!(self.0, "<text x=\"{x}\" y=\"{y}\" {style}>{words}</text>");
    }

    fn bar(&mut self, (x, y): (usize, usize), (width, height): (usize, usize), colour: &str) {
        let _ok = writeln!(
            self.0,
            "<rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" fill=\"{colour}\"/>"
        );
    }
}

const TITLE: &str = "font-size=\"20\" font-weight=\"bold\"";
const CASE: &str = "font-size=\"15\" font-weight=\"bold\"";
const FAINT: &str = "font-size=\"12\" fill=\"#6e7378\"";

/// One metric of a report as an SVG.
pub(crate) fn bars(report: &Report, metric: &Metric) -> String {
    let has = |case: &&CaseReport| {
        let mut tunnels = case.tunnels.iter();
        tunnels.any(|it| it.summary.contains_key(&*metric.name))
    };
    let cases: Vec<&CaseReport> = report.cases.iter().filter(has).collect();
    let panel_height = |case: &CaseReport| PANEL_TITLE + ROW * case.tunnels.len() + PANEL_GAP;
    let panels: usize = cases.iter().map(|case| panel_height(case)).sum();
    let height = HEADER + panels + FOOTER;
    let mut svg = Svg(format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"13\" fill=\"#202124\">\n"
    ));
    svg.bar((0, 0), (WIDTH, height), "#ffffff");
    let title = format!("{}: {}", report.bench, metric.unit);
    svg.text((MARGIN, 30), TITLE, &title);
    let hint = match metric.better {
        Better::Higher => "longer is better",
        Better::Lower => "shorter is better",
        Better::Neither => "neither is better",
    };
    let runs = report.settings.repeats;
    let hint = format!("{hint}; median of {runs} run(s), the line spans all of them");
    svg.text((MARGIN, 52), FAINT, &hint);
    let mut top = HEADER;
    for case in cases {
        svg.text((MARGIN, top + 16), CASE, &case.case);
        for (index, tunnel) in case.tunnels.iter().enumerate() {
            let row_top = top + PANEL_TITLE + ROW * index;
            row(&mut svg, (case, tunnel, index), metric, report, row_top);
        }
        top += panel_height(case);
    }
    let (machine, settings) = (&report.machine, &report.settings);
    let setting = format!(
        "{}; {} core(s) per side; {}; commit {}",
        settings.path, settings.cores, machine.date, machine.commit
    );
    svg.text((MARGIN, top + 12), FAINT, &machine.summary());
    svg.text((MARGIN, top + 28), FAINT, &setting);
    svg.0 + "</svg>\n"
}

fn row(
    svg: &mut Svg,
    (case, tunnel, index): (&CaseReport, &TunnelReport, usize),
    metric: &Metric,
    report: &Report,
    top: usize,
) {
    let found = |tunnel: &TunnelReport| tunnel.summary.get(&*metric.name).cloned();
    let all = case.tunnels.iter().filter_map(found);
    let longest = all
        .map(|it| it.summary.max)
        .fold(f64::MIN_POSITIVE, f64::max);
    let pixels = |value: f64| (BARS as f64 * value / longest).round() as usize;
    let (left, text) = (MARGIN + LABELS, top + BAR - 3);
    svg.text((left - 8, text), "text-anchor=\"end\"", &tunnel.tunnel);
    svg.bar((left, top), (BARS, BAR), "#f1f3f4");
    let number_at = (left + BARS + 8, text);
    let Some(found) = found(tunnel) else {
        return svg.text(number_at, FAINT, "not measured");
    };
    let summary = &found.summary;
    let colour = colour(&tunnel.tunnel, index);
    svg.bar((left, top), (pixels(summary.median).max(1), BAR), colour);
    if summary.samples > 1 {
        let (min, max) = (pixels(summary.min), pixels(summary.max));
        svg.bar(
            (left + min, top + BAR / 2),
            ((max - min).max(1), 1),
            "#3c4043",
        );
    }
    let baseline = report.baselines.first().map(String::as_str);
    let baseline = baseline.filter(|it| *it != tunnel.tunnel);
    svg.text(number_at, "", &number(&found, metric, baseline));
}

/// The median, and the ratio to the first baseline.
fn number(found: &MetricSummary, metric: &Metric, baseline: Option<&str>) -> String {
    let median = format!("{:.*}", metric.decimals, found.summary.median);
    let ratio = baseline.and_then(|it| Some((it, found.ratios.get(it)?)));
    match ratio.filter(|_| metric.has_ratio) {
        Some((baseline, ratio)) => format!("{median} ({ratio:.2} × {baseline})"),
        None => median,
    }
}

#[cfg(test)]
mod tests {
    use super::super::model::examples::{SPEED, report};
    use super::*;

    #[test]
    fn every_case_and_tunnel_is_in_the_picture() {
        let svg = bars(&report(), &SPEED);
        let wanted = [
            "example: Gbit/s",
            "tcp",
            "udp",
            "raw",
            "ours",
            "7.50 (0.50 × raw)",
        ];
        for words in wanted {
            assert!(svg.contains(words), "{words} is missing");
        }
        // The tunnel that failed has a label and no bar.
        assert_eq!(svg.matches("not measured").count(), 1);
    }

    #[test]
    fn known_tunnels_have_their_own_colours() {
        assert_ne!(colour("qmux-dp", 0), colour("quinn-dp", 0));
        assert_eq!(colour("qmux-dp", 0), colour("qmux-dp", 3));
        assert_ne!(colour("older", 0), colour("newer", 1));
    }
}
