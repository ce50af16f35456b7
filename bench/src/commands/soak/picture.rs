//! The picture of a soak: four panels over one axis of time.

use anyhow::Result;
use plotters::prelude::*;

use super::{SERIES, Sample};

const SIZE: (u32, u32) = (1_100, 1_000);

/// Of the lines of a panel.
const COLOURS: [RGBColor; 2] = [RGBColor(59, 120, 216), RGBColor(232, 113, 10)];

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
    let minutes = samples.last().map_or(1.0, |it| it.minutes).max(0.1);
    let panels: Vec<_> = SERIES.chunk_by(|a, b| a.0 == b.0).collect();
    let areas = area.split_evenly((panels.len(), 1));
    let mut index = 0;
    for (panel, lines) in areas.iter().zip(panels) {
        let points = |index: usize| {
            let points = samples.iter();
            points.filter_map(move |it| Some((it.minutes, it.values[index]?)))
        };
        let all = (index..index + lines.len()).flat_map(points);
        // From zero, so that what is flat looks flat.
        let top = all.map(|(_, value)| value).fold(0.0, f64::max) * 1.15 + 0.1;
        let mut chart = ChartBuilder::on(panel)
            .caption(lines[0].0, ("sans-serif", 18))
            .margin(12)
            .x_label_area_size(32)
            .y_label_area_size(56)
            .build_cartesian_2d(0.0..minutes, 0.0..top)?;
        chart
            .configure_mesh()
            .light_line_style(WHITE)
            .x_desc("minutes")
            .draw()?;
        for ((_, name, ..), colour) in lines.iter().zip(COLOURS) {
            chart
                .draw_series(LineSeries::new(points(index), colour.stroke_width(2)))?
                .label(*name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour));
            index += 1;
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
            .map(|at| {
                let mut values = [Some(20.0); SERIES.len()];
                values[4] = (at % 2 == 0).then_some(1.0);
                let minutes = f64::from(at) / 12.0;
                Sample { minutes, values }
            })
            .collect();
        let svg = draw(&samples).expect("drawn");
        for (title, name, ..) in SERIES {
            assert!(svg.contains(title) && svg.contains(name), "{title}, {name}");
        }
        assert!(draw(&[]).is_ok(), "a run that was cut short");
    }
}
