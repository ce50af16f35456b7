//! Bars: one panel for each case, one bar for each tunnel, the number at its end.
//!
//! Every panel has a scale of its own, because cases differ by orders of magnitude and are not to be compared with each
//! other; that is why there is no axis, and why every bar starts at zero.

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::metric::{Better, Metric};
use super::model::{CaseReport, MetricSummary, Report};

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Sizes in pixels.
const MARGIN: i32 = 24;
const HEADER: i32 = 64;
const FOOTER: i32 = 44;
const PANEL_WIDTH: i32 = 580;
const PANEL_TITLE: i32 = 30;
const PANEL_GAP: i32 = 22;
const ROW: i32 = 26;
const BAR: i32 = 16;
const LABELS: i32 = 128;
/// For the numbers behind the bars.
const NUMBERS: i32 = 172;

const INK: RGBColor = RGBColor(32, 33, 36);
const FAINT: RGBColor = RGBColor(110, 115, 120);
const TRACK: RGBColor = RGBColor(241, 243, 244);
const WHISKER: RGBColor = RGBColor(60, 64, 67);

/// Colours of the known tunnels; relatives look alike, ours stands out.
const COLOURS: &[(&str, RGBColor)] = &[
    ("raw", RGBColor(176, 182, 188)),
    ("quinn-dp", RGBColor(142, 186, 240)),
    ("quinn-dp-tuned", RGBColor(59, 120, 216)),
    ("rathole", RGBColor(196, 164, 230)),
    ("rathole-noise", RGBColor(142, 92, 210)),
    ("before", RGBColor(247, 193, 142)),
    ("qmux-dp", RGBColor(232, 113, 10)),
];

/// For tunnels with labels of their own.
const OTHER_COLOURS: &[RGBColor] = &[
    RGBColor(15, 157, 88),
    RGBColor(219, 68, 120),
    RGBColor(0, 151, 167),
    RGBColor(158, 120, 60),
];

fn colour(tunnel: &str, index: usize) -> RGBColor {
    let known = COLOURS.iter().find(|(label, _)| *label == tunnel);
    known.map_or(OTHER_COLOURS[index % OTHER_COLOURS.len()], |(_, colour)| {
        *colour
    })
}

/// One metric of a report as an SVG.
pub fn bars(report: &Report, metric: &Metric) -> Result<String, String> {
    let panels: Vec<&CaseReport> = report
        .cases
        .iter()
        .filter(|case| {
            case.tunnels
                .iter()
                .any(|it| it.summary.contains_key(metric.name))
        })
        .collect();
    let columns = if panels.len() > 2 { 2 } else { 1 };
    let rows: Vec<&[&CaseReport]> = panels.chunks(columns).collect();
    let heights: Vec<i32> = rows
        .iter()
        .map(|row| row.iter().map(|case| panel_height(case)).max().unwrap_or(0))
        .collect();
    let panel_columns = i32::try_from(columns).unwrap_or(1);
    let width = 2 * MARGIN + panel_columns * PANEL_WIDTH + (panel_columns - 1) * PANEL_GAP;
    let height = HEADER + heights.iter().map(|it| it + PANEL_GAP).sum::<i32>() + FOOTER;
    let mut svg = String::new();
    {
        let size = (width.unsigned_abs(), height.unsigned_abs());
        let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        draw(&area, report, metric, &rows, &heights).map_err(|error| error.to_string())?;
    }
    Ok(svg)
}

fn panel_height(case: &CaseReport) -> i32 {
    PANEL_TITLE + ROW * i32::try_from(case.tunnels.len()).unwrap_or(0)
}

type Drawn = Result<(), Box<dyn std::error::Error>>;

fn draw(
    area: &Area<'_>,
    report: &Report,
    metric: &Metric,
    rows: &[&[&CaseReport]],
    heights: &[i32],
) -> Drawn {
    area.fill(&WHITE)?;
    let hint = match metric.better {
        Better::Higher => "longer is better",
        Better::Lower => "shorter is better",
        Better::Neither => "neither is better",
    };
    let title = format!("{}: {}", report.bench, metric.unit);
    text(
        area,
        &title,
        (MARGIN, 26),
        20,
        INK,
        FontStyle::Bold,
        HPos::Left,
    )?;
    let runs = report.settings.repeats;
    let subtitle = format!("{hint}; median of {runs} run(s), the line spans all of them");
    text(
        area,
        &subtitle,
        (MARGIN, 48),
        13,
        FAINT,
        FontStyle::Normal,
        HPos::Left,
    )?;
    let baseline = report.baselines.first().map(String::as_str);
    let mut top = HEADER;
    for (row, height) in rows.iter().zip(heights) {
        let mut left = MARGIN;
        for case in *row {
            panel(area, case, metric, baseline, (left, top))?;
            left += PANEL_WIDTH + PANEL_GAP;
        }
        top += height + PANEL_GAP;
    }
    let machine = &report.machine;
    let settings = &report.settings;
    let setting = format!(
        "{}; {} core(s) per side; {}; commit {}",
        settings.path, settings.cores, machine.date, machine.commit
    );
    for (line, words) in (0..).zip([machine.summary(), setting]) {
        let at = (MARGIN, top + 4 + 16 * line);
        text(area, &words, at, 11, FAINT, FontStyle::Normal, HPos::Left)?;
    }
    area.present()?;
    Ok(())
}

fn panel(
    area: &Area<'_>,
    case: &CaseReport,
    metric: &Metric,
    baseline: Option<&str>,
    (left, top): (i32, i32),
) -> Drawn {
    text(
        area,
        &case.case,
        (left, top + 12),
        15,
        INK,
        FontStyle::Bold,
        HPos::Left,
    )?;
    let found = |label: usize| case.tunnels[label].summary.get(metric.name);
    let longest = (0..case.tunnels.len())
        .filter_map(found)
        .map(|found| found.summary.max)
        .fold(0.0, f64::max);
    for (index, tunnel) in case.tunnels.iter().enumerate() {
        let middle = top + PANEL_TITLE + ROW * i32::try_from(index)? + ROW / 2;
        let is_ours = tunnel.tunnel == "qmux-dp";
        let style = if is_ours {
            FontStyle::Bold
        } else {
            FontStyle::Normal
        };
        let label_at = (left + LABELS - 8, middle);
        text(area, &tunnel.tunnel, label_at, 13, INK, style, HPos::Right)?;
        let from = (left + LABELS, middle - BAR / 2);
        let to = (left + PANEL_WIDTH - NUMBERS, middle + BAR / 2);
        area.draw(&Rectangle::new([from, to], TRACK.filled()))?;
        let number_at = (to.0 + 8, middle);
        match found(index) {
            Some(found) => {
                bar(
                    area,
                    found,
                    longest,
                    (from, to),
                    colour(&tunnel.tunnel, index),
                )?;
                let baseline = baseline.filter(|it| *it != tunnel.tunnel);
                let number = number(found, metric, baseline);
                text(area, &number, number_at, 13, INK, style, HPos::Left)?;
            }
            None => text(
                area,
                "not measured",
                number_at,
                13,
                FAINT,
                style,
                HPos::Left,
            )?,
        }
    }
    Ok(())
}

/// The median, and the ratio to the first baseline.
fn number(found: &MetricSummary, metric: &Metric, baseline: Option<&str>) -> String {
    let decimals = metric.decimals;
    let median = format!("{:.decimals$}", found.summary.median);
    let ratio = baseline.and_then(|it| Some((it, found.ratios.get(it)?)));
    match ratio.filter(|_| metric.has_ratio) {
        Some((baseline, ratio)) => format!("{median} ({ratio:.2} × {baseline})"),
        None => median,
    }
}

fn bar(
    area: &Area<'_>,
    found: &MetricSummary,
    longest: f64,
    ((left, top), (right, bottom)): ((i32, i32), (i32, i32)),
    colour: RGBColor,
) -> Drawn {
    let at = |value: f64| {
        let share = if longest > 0.0 { value / longest } else { 0.0 };
        let pixels = (f64::from(right - left) * share).round() as i32;
        left + pixels
    };
    let summary = &found.summary;
    let corners = [(left, top), (at(summary.median).max(left + 1), bottom)];
    area.draw(&Rectangle::new(corners, colour.filled()))?;
    if summary.samples > 1 {
        let middle = (top + bottom) / 2;
        let (min, max) = (at(summary.min), at(summary.max));
        let lines = [
            vec![(min, middle), (max, middle)],
            vec![(min, middle - 3), (min, middle + 3)],
            vec![(max, middle - 3), (max, middle + 3)],
        ];
        for line in lines {
            area.draw(&PathElement::new(line, WHISKER.stroke_width(1)))?;
        }
    }
    Ok(())
}

fn text(
    area: &Area<'_>,
    words: &str,
    at: (i32, i32),
    size: i32,
    colour: RGBColor,
    style: FontStyle,
    side: HPos,
) -> Drawn {
    let font = FontDesc::new(FontFamily::SansSerif, f64::from(size), style);
    let style = font.color(&colour).pos(Pos::new(side, VPos::Center));
    area.draw(&Text::new(words.to_owned(), at, style))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::model::examples::{SPEED, report};
    use super::*;

    #[test]
    fn every_case_and_tunnel_is_in_the_picture() {
        let svg = bars(&report(), &SPEED).expect("a chart");
        for words in [
            "example: Gbit/s",
            "tcp",
            "udp",
            "raw",
            "ours",
            "7.50 (0.50 × raw)",
        ] {
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
