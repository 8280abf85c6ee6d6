//! Curves of step times: over the number of candidate rows, and over the number of mask groups.
//!
//! Steps of a curve are timed in turn, one repetition each, round after round. A machine that gets slower for a while then
//! does so for all steps alike.

use std::io::Write;

use flexdraft::device::Device;

use super::args::StepMode;
use super::case::{Case, Repeats};
use super::steps::{PassShape, Step};
use crate::error::{CliError, Result};

/// The largest number of candidate rows of a curve.
const MOST_ROWS: usize = 33;

/// Number of rounds, and the number with `--quick`.
const ROUNDS: usize = 15;
const QUICK_ROUNDS: usize = 3;

/// The columns of the table.
pub const HEADER: &str =
    "curve,batch,context,candidates,groups,mask_rows,drafting_pass,median_ms,least_ms,most_ms,rounds";

/// One step of a curve.
#[derive(Clone, Debug, PartialEq)]
struct Point {
    /// The curve's name: `rows`, or `groups V` for a verify length V.
    curve: String,
    step: Step,
}

/// The settings of the curves.
#[derive(Clone, Copy, Debug)]
pub struct Settings<'a> {
    pub verify_lens: &'a [usize],
    pub block_size: usize,
    /// Whether the model has a drafter, and whether the drafter can draft in the verification pass.
    pub drafts: bool,
    pub drafts_in_pass: bool,
    /// Whether fewer rounds are enough.
    pub quick: bool,
}

impl Settings<'_> {
    /// Returns the largest number of candidates of a curve's step, for which a case needs room.
    pub fn most_candidates(&self) -> usize {
        MOST_ROWS.max(self.block_size)
    }

    /// Writes the lines of a table with the curves for `batch` sequences of `context` cached positions: steps of 1 to 33
    /// candidate rows without drafts, and for each verify length steps with a drafting pass and with each number of mask
    /// groups, for the longest accepted lengths.
    pub fn write<D: Device>(
        &self,
        case: &mut Case<'_, D>,
        (batch, context): (usize, usize),
        out: &mut impl Write,
    ) -> Result<()> {
        let points = self.points();
        let rounds = if self.quick { QUICK_ROUNDS } else { ROUNDS };
        let mut seconds = vec![Vec::new(); points.len()];
        for _ in 0..rounds {
            for (point, seconds) in points.iter().zip(&mut seconds) {
                seconds.push(case.time(&point.step, context, Repeats::ONCE)?.step);
            }
        }
        for (Point { curve, step }, seconds) in points.iter().zip(&mut seconds) {
            seconds.sort_by(f64::total_cmp);
            let at = |index: usize| seconds.get(index).copied().unwrap_or(0.0) * 1e3;
            let shape = step.shape(batch, context);
            let line = format!(
                "{curve},{batch},{context},{},{},{},{},{:.4},{:.4},{:.4},{rounds}\n",
                shape.candidates,
                step.groups(),
                shape.mask_rows,
                u8::from(shape.draft_rows > 0),
                at(seconds.len() / 2),
                at(0),
                at(seconds.len().saturating_sub(1)),
            );
            out.write_all(line.as_bytes()).and_then(|()| out.flush()).map_err(CliError::Output)?;
        }
        Ok(())
    }

    fn points(&self) -> Vec<Point> {
        let point = |candidates| Point { curve: "rows".into(), step: rows(candidates) };
        let mut points: Vec<Point> = (1..=MOST_ROWS).map(point).collect();
        for &verify_len in self.verify_lens.iter().filter(|_| self.drafts) {
            let curve = format!("groups {verify_len}");
            let point = |step| Point { curve: curve.clone(), step };
            points.push(point(Step::sequential(verify_len, self.block_size)));
            let groups = if self.drafts_in_pass { verify_len + 1 } else { 0 };
            let parallel = |groups| point(Step::parallel(verify_len, self.block_size, groups));
            points.extend((1..=groups).map(parallel));
        }
        points
    }
}

/// Returns a step that verifies `candidates − 1` draft tokens of a sequence, and drafts nothing.
fn rows(candidates: usize) -> Step {
    let pass = PassShape { candidates, groups: Vec::new(), slots: 0 };
    let verified = candidates - 1;
    Step { mode: StepMode::Ar, passes: vec![pass], logits: candidates, verified, drafts: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_of_the_curves() {
        let shapes = |(drafts, drafts_in_pass)| -> Vec<(String, usize, usize, bool)> {
            let settings =
                Settings { verify_lens: &[1, 3], block_size: 4, drafts, drafts_in_pass, quick: true };
            let point = |Point { curve, step }: Point| {
                let shape = step.shape(1, 10);
                (curve, shape.candidates, shape.mask_rows, shape.draft_rows > 0)
            };
            settings.points().into_iter().map(point).collect()
        };
        let all = shapes((true, true));
        for (index, point) in all[..MOST_ROWS].iter().enumerate() {
            assert_eq!(*point, ("rows".into(), index + 1, 0, false));
        }
        let group = |v: usize, groups: usize, apart| (format!("groups {v}"), v + 1, 4 * groups, apart);
        let expected = [
            group(1, 0, true),
            group(1, 1, false),
            group(1, 2, false),
            group(3, 0, true),
            group(3, 1, false),
            group(3, 2, false),
            group(3, 3, false),
            group(3, 4, false),
        ];
        assert_eq!(all[MOST_ROWS..], expected);
        // Drafters that draft after the verification only, and no drafter.
        assert_eq!(shapes((true, false))[MOST_ROWS..], [group(1, 0, true), group(3, 0, true)]);
        assert_eq!(shapes((false, false)).len(), MOST_ROWS);
    }
}
