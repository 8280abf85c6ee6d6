//! Simulated machines: the duration of a step from its rows.
//!
//! The functions differ from the functions of any policy's cost model: products take the time to stream the weights, or
//! the time of whole tiles of rows, or a measured curve between points.

use serde::{Deserialize, Serialize};

/// The duration of the matrix products of a layer or of the LM head, by the number of rows.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(untagged)]
pub enum Products {
    /// The time to stream the weights, or to compute whole tiles of rows, whichever is longer.
    Tiles {
        /// Microseconds to stream the weights.
        stream_us: f64,
        /// Microseconds per row of a tile.
        row_us: f64,
        /// Rows per tile.
        tile: usize,
    },
    /// Measured points `[rows, microseconds]`, ascending, with straight lines between them and beyond the last.
    Curve(Vec<(f64, f64)>),
}

impl Products {
    fn us(&self, rows: usize) -> f64 {
        if rows == 0 {
            return 0.0;
        }
        match self {
            Self::Tiles { stream_us, row_us, tile } => {
                stream_us.max((rows.div_ceil(*tile) * tile) as f64 * row_us)
            }
            Self::Curve(points) => {
                let rows = rows as f64;
                let above =
                    points.iter().position(|point| point.0 >= rows).unwrap_or(points.len() - 1).max(1);
                let ((low, from), (high, to)) = (points[above - 1], points[above]);
                (from + (to - from) * (rows - low) / (high - low)).max(0.0)
            }
        }
    }
}

/// A simulated machine with a model on it.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
pub struct Machine {
    /// The machine's name in reports.
    pub name: String,
    /// The numbers' origin: what was measured and where, or that they are predicted.
    pub source: String,
    /// Microseconds per step: the host's work and its wait.
    pub step_us: f64,
    /// Microseconds per pass besides its layers.
    pub pass_us: f64,
    /// Microseconds per sequence and step: sampling and acceptance.
    pub sequence_us: f64,
    /// Number of layers that run candidates only.
    pub head_layers: usize,
    /// Number of layers that also run mask rows.
    pub tail_layers: usize,
    /// Microseconds per layer besides products and cached positions.
    pub layer_us: f64,
    /// The products of a layer.
    pub layer: Products,
    /// The product of the LM head.
    pub lm_head: Products,
    /// Microseconds of calibration and sampling per drafted row.
    pub draft_row_us: f64,
    /// Nanoseconds per layer and cached position of a sequence.
    pub position_ns: f64,
    /// Nanoseconds per layer, cached position and mask group after the first.
    pub group_position_ns: f64,
}

/// The rows of one sequence in a step.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rows {
    /// Candidate rows, or rows of a prompt.
    pub candidates: usize,
    /// Rows whose logits are computed among the candidates.
    pub logits: usize,
    /// Mask groups in the verification pass.
    pub groups: usize,
    /// Whether the next block is drafted in a separate pass.
    pub apart: bool,
    /// Slots per group.
    pub slots: usize,
    /// Positions in the cache.
    pub cached: usize,
}

impl Machine {
    /// Returns the duration of a step in seconds, without noise.
    pub fn seconds(&self, sequences: &[Rows]) -> f64 {
        let sum = |of: &dyn Fn(&Rows) -> usize| sequences.iter().map(of).sum::<usize>();
        let candidates = sum(&|rows| rows.candidates);
        if candidates == 0 {
            return self.step_us * 1e-6;
        }
        let mask_rows = sum(&|rows| rows.groups * rows.slots);
        let logits = sum(&|rows| rows.logits);
        let drafted = |rows: &Rows| rows.slots.saturating_sub(1);
        let all_slots = sum(&|rows| rows.groups * drafted(rows));
        let in_pass = sum(&|rows| if rows.groups > 0 && !rows.apart { drafted(rows) } else { 0 });
        let layers = (self.head_layers + self.tail_layers) as f64;
        let tail = self.tail_layers as f64;
        let mut us = self.step_us + self.pass_us + layers * self.layer_us;
        us += self.head_layers as f64 * self.layer.us(candidates)
            + tail * self.layer.us(candidates + mask_rows);
        us += self.sequence_us * sequences.len() as f64;
        us += if in_pass > 0 {
            let apart = self.lm_head.us(logits) + self.lm_head.us(in_pass);
            self.lm_head.us(logits + all_slots).min(apart) + self.draft_row_us * in_pass as f64
        } else {
            self.lm_head.us(logits)
        };
        let ns = |rows: &Rows| {
            let further = rows.groups.saturating_sub(1) as f64;
            rows.cached as f64 * (layers * self.position_ns + tail * self.group_position_ns * further)
        };
        us += 1e-3 * sequences.iter().map(ns).sum::<f64>();
        let slots = sum(&|rows| if rows.apart { rows.slots } else { 0 });
        if slots > 0 {
            let drawn = sum(&|rows| if rows.apart { drafted(rows) } else { 0 });
            us += self.pass_us + tail * (self.layer_us + self.layer.us(slots));
            us += self.lm_head.us(drawn) + self.draft_row_us * drawn as f64;
            let cached = sum(&|rows| if rows.apart { rows.cached } else { 0 });
            us += 1e-3 * tail * self.position_ns * cached as f64;
        }
        us * 1e-6
    }
}
