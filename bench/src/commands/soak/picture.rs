//! The picture of a soak: four panels over one axis of time.

use anyhow::Result;
use plotters::prelude::*;

use super::Sample;

const SIZE: (u32, u32) = (1_100, 1_000);

/// A line of a panel: what it is called, its colour, its values.
type Line = (&'static str, RGBColor, fn(&Sample) -> Option<f64>);

const BLUE: RGBColor = RGBColor(59, 120, 216);
const ORANGE: RGBColor = RGBColor(232, 113, 10);

fn panels() -> [(&'static str, Vec<Line>); 4] {
    let memory: [Line; 2] = [
        ("server", BLUE, |it| Some(it.server_mib)),
        ("client", ORANGE, |it| Some(it.client_mib)),
    ];
    let descriptors: [Line; 2] = [
        ("server", BLUE, |it| Some(it.server_descriptors)),
        ("client", ORANGE, |it| Some(it.client_descriptors)),
    ];
    let cpu: [Line; 1] = [("CPU s/GB", BLUE, |it| it.cpu_seconds_per_gb)];
    let requests: [Line; 2] = [
        ("p50", BLUE, |it| Some(it.p50_ms)),
        ("p99", ORANGE, |it| Some(it.p99_ms)),
    ];
    [
        ("memory, MiB", memory.into()),
        ("open descriptors", descriptors.into()),
        ("CPU seconds per GB, server and client", cpu.into()),
        ("requests, ms", requests.into()),
    ]
}

pub(super) fn draw(samples: &[Sample]) -> Result<String> {
    let mut svg = String::new();
    draw_panels(
        &SVGBackend::with_string(&mut svg, SIZE).into_drawing_area(),
        samples,
    )?;
    Ok(svg)
}

fn draw_panels(
    area: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
    samples: &[Sample],
) -> Result<()> {
    area.fill(&WHITE)?;
    let minutes = samples.last().map_or(1.0, |it| it.at / 60.0).max(0.1);
    let panels = panels();
    let areas = area.split_evenly((panels.len(), 1));
    for (panel, (title, lines)) in areas.iter().zip(panels) {
        let lines = lines.into_iter();
        let values = lines.clone();
        let values = values.flat_map(|(.., value)| samples.iter().filter_map(value));
        // From zero, so that what is flat looks flat.
        let top = values.fold(0.0, f64::max) * 1.15 + 0.1;
        let mut chart = ChartBuilder::on(panel)
            .caption(title, ("sans-serif", 18))
            .margin(12)
            .x_label_area_size(32)
            .y_label_area_size(56)
            .build_cartesian_2d(0.0..minutes, 0.0..top)?;
        chart
            .configure_mesh()
            .light_line_style(WHITE)
            .x_desc("minutes")
            .draw()?;
        for (name, colour, value) in lines {
            let points = samples.iter();
            let points = points.filter_map(|it| Some((it.at / 60.0, value(it)?)));
            chart
                .draw_series(LineSeries::new(points, colour.stroke_width(2)))?
                .label(name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour));
        }
        chart
            .configure_series_labels()
            .background_style(WHITE.mix(0.8))
            .border_style(BLACK.mix(0.2))
            .draw()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_panel_and_line_is_in_the_picture() {
        let samples: Vec<Sample> = (1..20)
            .map(|at| Sample {
                at: f64::from(at) * 5.0,
                server_mib: 20.0,
                cpu_seconds_per_gb: (at % 2 == 0).then_some(1.0),
                ..Sample::default()
            })
            .collect();
        let svg = draw(&samples).expect("drawn");
        for (title, lines) in panels() {
            assert!(svg.contains(title), "{title}");
            for (name, ..) in lines {
                assert!(svg.contains(name), "{name}");
            }
        }
        assert!(draw(&[]).is_ok(), "a run that was cut short");
    }
}
