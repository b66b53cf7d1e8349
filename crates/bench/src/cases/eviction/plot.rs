//! Lines of percentages over sizes, side by side, as SVG.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::*;

const PANEL: (u32, u32) = (520, 400);
/// Of Okabe and Ito: distinct to people who see few colours.
const COLOURS: [RGBColor; 5] = [
    RGBColor(213, 94, 0),
    RGBColor(0, 114, 178),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(120, 120, 120),
];

/// One panel: what it shows, and each line's name with its percentages.
pub(super) type Panel<'a, const N: usize> = (&'a str, Vec<(&'a str, [f64; N])>);

/// Draws the panels side by side, over `sizes` in percent.
pub(super) fn draw<const N: usize>(path: &Path, sizes: &[u64; N], panels: &[Panel<'_, N>]) -> Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let area = SVGBackend::new(path, (PANEL.0 * panels.len() as u32, PANEL.1)).into_drawing_area();
    draw_on(&area, sizes, panels).map_err(|error| anyhow!("drawing {}: {error}", path.display()))
}

fn draw_on<B: DrawingBackend<ErrorType: 'static>, const N: usize>(
    area: &DrawingArea<B, plotters::coord::Shift>,
    sizes: &[u64; N],
    panels: &[Panel<'_, N>],
) -> Result<(), Box<dyn std::error::Error>>
where
    B::ErrorType: std::error::Error + Send + Sync,
{
    area.fill(&WHITE)?;
    for (part, (what, lines)) in area.split_evenly((1, panels.len())).iter().zip(panels) {
        let (first, last) = (sizes[0] as f64, sizes[N - 1] as f64);
        let mut chart = ChartBuilder::on(part)
            .caption(format!("Hits of {what}"), ("sans-serif", 18))
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(48)
            .build_cartesian_2d((first..last).log_scale(), 0.0..100.0)?;
        chart
            .configure_mesh()
            .x_desc("size of the cache, % of the working set")
            .y_desc("hits, %")
            .x_label_formatter(&|size| format!("{size:.0}"))
            .light_line_style(WHITE)
            .draw()?;
        for ((name, percents), colour) in lines.iter().zip(COLOURS) {
            let points = || sizes.iter().map(|size| *size as f64).zip(percents.iter().copied());
            chart
                .draw_series(LineSeries::new(points(), colour.stroke_width(2)))?
                .label(*name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], colour.stroke_width(2)));
            chart.draw_series(points().map(|point| Circle::new(point, 3, colour.filled())))?;
        }
        chart.configure_series_labels().position(SeriesLabelPosition::LowerRight).border_style(BLACK).draw()?;
    }
    area.present()?;
    Ok(())
}
