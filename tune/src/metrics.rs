//! The metrics of a run, as read from its `metrics.jsonl`.
//!
//! A killed run continues from its latest checkpoint and repeats the steps after it, so of two lines for the same
//! step the later one counts.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use crate::error::{Result, TuneError};
use crate::json_lines;

/// The keys of a metrics line that the curves need. Other keys are ignored; numbers that are not finite are written as
/// null.
#[derive(Deserialize)]
struct Line {
    event: Option<String>,
    step: Option<u64>,
    anchors: Option<f64>,
    loss: Option<f64>,
    tau: Option<f64>,
}

/// The quantity on the x axis of a curve.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Axis {
    /// Number of anchors seen, for runs that tune a drafter.
    Anchors,
    /// Number of steps taken, for other runs.
    #[default]
    Steps,
}

/// The points (x, y) of a curve, in ascending order of x.
pub type Series = Vec<(f64, f64)>;

/// The losses and acceptance lengths of a run, as curves.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metrics {
    /// The quantity on the x axis of the curves.
    pub axis: Axis,
    /// Training loss of each step.
    pub loss: Series,
    /// Loss on held-out text, for each evaluation.
    pub held_out_loss: Series,
    /// Acceptance length on held-out transcripts.
    pub tau: Series,
}

impl Metrics {
    /// Reads the metrics file of a run. An unfinished last line is left out.
    ///
    /// # Errors
    /// [`TuneError::Io`]; [`TuneError::File`] naming the first line that is not an object of the right types;
    /// [`TuneError::TooLittleData`] for a file without a loss and without a τ.
    pub fn read(path: &Path) -> Result<Self> {
        // A missing metrics file is an error here, but not at the start of a run.
        std::fs::metadata(path).map_err(TuneError::io("read", path))?;
        let lines: Vec<Line> = json_lines::read(path)?;
        let axis = if lines.iter().any(|line| line.anchors.is_some()) { Axis::Anchors } else { Axis::Steps };
        let [mut loss, mut held_out_loss, mut tau] = [(); 3].map(|()| BTreeMap::new());
        for line in &lines {
            let Some(step) = line.step else { continue };
            let x = match axis {
                Axis::Anchors => line.anchors,
                Axis::Steps => Some(step as f64),
            };
            let Some(x) = x else { continue };
            let losses =
                if line.event.as_deref() == Some("heldout") { &mut held_out_loss } else { &mut loss };
            for (value, series) in [(line.loss, losses), (line.tau, &mut tau)] {
                if let Some(value) = value.filter(|value| value.is_finite()) {
                    series.insert(step, (x, value));
                }
            }
        }
        let series = |points: BTreeMap<u64, (f64, f64)>| points.into_values().collect::<Series>();
        let metrics =
            Self { axis, loss: series(loss), held_out_loss: series(held_out_loss), tau: series(tau) };
        if metrics.loss.is_empty() && metrics.tau.is_empty() {
            let (path, unit) = (path.into(), "points of a curve");
            return Err(TuneError::TooLittleData { path, found: 0, unit, needed: 1 });
        }
        Ok(metrics)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn read(text: &str) -> Result<Metrics> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        fs::write(&path, text).unwrap();
        Metrics::read(&path)
    }

    #[test]
    fn the_later_of_two_lines_counts() {
        let metrics = read(concat!(
            "{\"step\":1,\"anchors\":10,\"loss\":9.0,\"more\":[1]}\n",
            "{\"step\":2,\"anchors\":20,\"loss\":8.0}\n",
            "{\"step\":2,\"anchors\":20,\"tau\":1.5}\n",
            "{\"step\":2,\"anchors\":20,\"loss\":7.0}\n",
            "{\"step\":3,\"anchors\":30,\"loss\":null}\n",
            "{\"step\":4,\"anchors\":40,\"lo",
        ))
        .unwrap();
        assert_eq!(metrics.axis, Axis::Anchors);
        assert_eq!(metrics.loss, [(10.0, 9.0), (20.0, 7.0)]);
        assert_eq!(metrics.tau, [(20.0, 1.5)]);
    }

    #[test]
    fn runs_without_anchors_are_drawn_over_steps() {
        let metrics = read(concat!(
            "{\"event\":\"begin\",\"step\":0}\n",
            "{\"event\":\"step\",\"step\":5,\"loss\":3.0}\n",
            "{\"event\":\"heldout\",\"step\":5,\"loss\":4.0}\n",
        ))
        .unwrap();
        assert_eq!(
            (metrics.axis, metrics.loss, metrics.held_out_loss),
            (Axis::Steps, vec![(5.0, 3.0)], vec![(5.0, 4.0)])
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert!(matches!(read("{\"step\":1}\n"), Err(TuneError::TooLittleData { .. })));
        assert!(read("{\"step\":1,\"loss\":2}\nnot json\n").unwrap_err().to_string().contains("line 2"));
        assert!(matches!(Metrics::read(Path::new("no/such")), Err(TuneError::Io { action: "read", .. })));
    }
}
