//! Training curves as an SVG picture: loss above, held-out acceptance length below, over the same axis.

use std::fmt::Display;
use std::ops::Range;
use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;

use crate::error::{Result, TuneError};
use crate::metrics::{Axis, Metrics, Series};

/// Width of the picture and height of each of its panels, in pixels.
const WIDTH: u32 = 900;
const PANEL: u32 = 330;

/// Maximum number of points per curve; longer curves are averaged over neighbouring points.
const POINTS: usize = 200;

/// Colours that stay distinct in print and for colour-blind readers (Okabe and Ito).
const COLOURS: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
];

const GRID: RGBColor = RGBColor(225, 225, 225);
const FONT: &str = "sans-serif";

/// A training run to draw.
#[derive(Clone, Debug)]
pub struct Run {
    /// Name of the run in the legend.
    pub name: String,
    /// The losses and acceptance lengths of the run.
    pub metrics: Metrics,
}

/// One curve of a panel of the picture.
struct Line<'a> {
    name: String,
    series: &'a Series,
    colour: RGBColor,
    /// True if the curve's points are marked.
    marked: bool,
}

/// Draws the curves of runs that share an x axis. Panels without points are left out.
///
/// # Errors
/// [`TuneError::Setting`] for no run, or runs over different axes; [`TuneError::File`] if the file cannot be
/// written.
pub fn draw(path: &Path, runs: &[Run]) -> Result<()> {
    let axis = match runs {
        [] => return Err(TuneError::setting("the number of runs", 0, "at least 1")),
        [first, rest @ ..] if rest.iter().all(|run| run.metrics.axis == first.metrics.axis) => {
            first.metrics.axis
        }
        _ => {
            return Err(TuneError::setting(
                "the runs' axis",
                "anchors and steps",
                "one of them for all runs",
            ));
        }
    };
    let panels: Vec<(&str, Vec<Line<'_>>)> =
        [("loss", losses(runs)), ("held-out acceptance length τ", taus(runs))]
            .into_iter()
            .filter(|(_, lines)| !lines.is_empty())
            .collect();
    let last = |line: &Line<'_>| line.series.last().map_or(0.0, |point| point.0);
    let end = panels.iter().flat_map(|(_, lines)| lines.iter().map(last)).fold(0.0, f64::max).max(1.0);

    let failed = |error: &dyn Display| TuneError::File { path: path.into(), reason: error.to_string() };
    let root = SVGBackend::new(path, (WIDTH, PANEL * panels.len() as u32)).into_drawing_area();
    root.fill(&WHITE).map_err(|error| failed(&error))?;
    for (area, (title, lines)) in root.split_evenly((panels.len(), 1)).iter().zip(&panels) {
        panel(area, axis, end, title, lines).map_err(|error| failed(&error))?;
    }
    root.present().map_err(|error| failed(&error))
}

fn losses(runs: &[Run]) -> Vec<Line<'_>> {
    let single = runs.len() == 1;
    let mut lines = Vec::new();
    for (index, run) in runs.iter().enumerate() {
        let name = |what: &str| if single { what.to_owned() } else { format!("{}, {what}", run.name) };
        lines.push(Line {
            name: name("loss"),
            series: &run.metrics.loss,
            colour: colour(index),
            marked: false,
        });
        lines.push(Line {
            name: name("held-out loss"),
            series: &run.metrics.held_out_loss,
            colour: colour(if single { 1 } else { index }),
            marked: true,
        });
    }
    lines.retain(|line| !line.series.is_empty());
    lines
}

fn taus(runs: &[Run]) -> Vec<Line<'_>> {
    let name = |run: &Run| if runs.len() == 1 { "τ".to_owned() } else { run.name.clone() };
    runs.iter()
        .enumerate()
        .map(|(index, run)| Line {
            name: name(run),
            series: &run.metrics.tau,
            colour: colour(index),
            marked: true,
        })
        .filter(|line| !line.series.is_empty())
        .collect()
}

fn colour(index: usize) -> RGBColor {
    COLOURS[index % COLOURS.len()]
}

type Drawn<T, D> = std::result::Result<T, DrawingAreaErrorKind<<D as DrawingBackend>::ErrorType>>;

fn panel<D: DrawingBackend>(
    area: &DrawingArea<D, Shift>,
    axis: Axis,
    end: f64,
    title: &str,
    lines: &[Line<'_>],
) -> Drawn<(), D> {
    let drawn: Vec<Series> = lines.iter().map(|line| averaged(line.series)).collect();
    let mut chart = ChartBuilder::on(area)
        .margin(12)
        .margin_right(28)
        .x_label_area_size(42)
        .y_label_area_size(64)
        .build_cartesian_2d(0.0..end, range(drawn.iter().flatten().map(|point| point.1)))?;
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .bold_line_style(GRID)
        .axis_style(BLACK.mix(0.6))
        .x_labels(8)
        .y_labels(7)
        .x_label_formatter(&|x| count(*x))
        .y_label_formatter(&|y| format!("{y:.2}"))
        .label_style((FONT, 14))
        .axis_desc_style((FONT, 15))
        .x_desc(match axis {
            Axis::Anchors => "anchors seen",
            Axis::Steps => "steps",
        })
        .y_desc(title)
        .draw()?;
    for (line, points) in lines.iter().zip(drawn) {
        let colour = line.colour;
        if line.marked {
            let dots = points.iter().map(|&point| Circle::new(point, 3, colour.filled()));
            chart.draw_series(dots)?;
        }
        let style = if line.marked { colour.stroke_width(2) } else { colour.mix(0.85).stroke_width(2) };
        chart
            .draw_series(LineSeries::new(points, style))?
            .label(&line.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(if title == "loss" {
            SeriesLabelPosition::UpperRight
        } else {
            SeriesLabelPosition::LowerRight
        })
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.3))
        .label_font((FONT, 14))
        .draw()
}

/// Returns the range of an axis's values, slightly widened.
fn range(values: impl Iterator<Item = f64>) -> Range<f64> {
    let (low, high) =
        values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), y| (low.min(y), high.max(y)));
    if low > high {
        return 0.0..1.0;
    }
    let margin = ((high - low) * 0.06).max(0.01);
    low - margin..high + margin
}

/// Returns at most [`POINTS`] points of a curve, each the mean of the same number of neighbours.
fn averaged(series: &Series) -> Series {
    let together = series.len().div_ceil(POINTS).max(1);
    let mean = |points: &[(f64, f64)]| {
        let sum = points.iter().fold((0.0, 0.0), |sum, point| (sum.0 + point.0, sum.1 + point.1));
        (sum.0 / points.len() as f64, sum.1 / points.len() as f64)
    };
    series.chunks(together).map(mean).collect()
}

/// Formats a number of an axis; large numbers are shown in thousands or millions.
fn count(x: f64) -> String {
    match x {
        x if x >= 1e6 => format!("{} M", x / 1e6),
        x if x >= 1e4 => format!("{} k", x / 1e3),
        x => format!("{x}"),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn run(name: &str, axis: Axis) -> Run {
        let loss: Series = (1..=1000).map(|i| (f64::from(i) * 24.0, 4.0 + 60.0 / f64::from(9 + i))).collect();
        let tau = (1..=10).map(|i| (f64::from(i) * 2400.0, 1.0 + f64::from(i) * 0.02)).collect();
        Run { name: name.into(), metrics: Metrics { axis, loss, held_out_loss: Vec::new(), tau } }
    }

    fn svg(runs: &[Run]) -> Result<String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("curves.svg");
        draw(&path, runs)?;
        Ok(fs::read_to_string(path).unwrap())
    }

    #[test]
    fn a_run_has_two_panels_with_axes_and_legends() {
        let picture = svg(&[run("one", Axis::Anchors)]).unwrap();
        for text in ["anchors seen", "held-out acceptance length τ", "20 k", "loss"] {
            assert!(picture.contains(text), "{text}");
        }
        assert!(picture.contains("height=\"660\""));
        let mut without = run("one", Axis::Steps);
        without.metrics.tau.clear();
        let picture = svg(&[without]).unwrap();
        assert!(picture.contains("height=\"330\"") && picture.contains("steps"));
    }

    #[test]
    fn runs_are_named() {
        let picture = svg(&[run("narrow", Axis::Anchors), run("wide", Axis::Anchors)]).unwrap();
        assert!(picture.contains("narrow") && picture.contains("wide, loss"));
    }

    #[test]
    fn what_cannot_be_drawn_is_an_error() {
        assert!(matches!(svg(&[]), Err(TuneError::Setting { .. })));
        assert!(svg(&[run("a", Axis::Anchors), run("b", Axis::Steps)]).is_err());
        assert!(draw(Path::new("no/such/folder/c.svg"), &[run("a", Axis::Steps)]).is_err());
    }

    #[test]
    fn long_series_are_averaged() {
        let series: Series = (0..1000).map(|i| (f64::from(i), f64::from(i % 2))).collect();
        let averaged = averaged(&series);
        assert_eq!(averaged.len(), POINTS);
        assert_eq!(averaged[0], (2.0, 0.4));
        assert_eq!(count(3_000_000.0), "3 M");
        assert_eq!(count(20_000.0), "20 k");
        assert_eq!(count(500.0), "500");
    }
}
