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

/// Sums over the rows of a step, which determine the step's duration.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Totals {
    /// Number of sequences.
    pub sequences: usize,
    /// Candidate rows, and rows of prompts.
    pub candidates: usize,
    /// Candidate rows whose logits are computed.
    pub logits: usize,
    /// Mask rows in the verification pass.
    pub mask_rows: usize,
    /// Mask rows in the verification pass whose logits may be computed.
    pub all_slots: usize,
    /// Draft tokens that are drawn in the verification pass.
    pub in_pass: usize,
    /// Cached positions of all sequences.
    pub cached: usize,
    /// Sum over the sequences of cached positions times mask groups after the first.
    pub group_cached: usize,
    /// Mask rows in the drafting pass.
    pub draft_rows: usize,
    /// Draft tokens that are drawn in the drafting pass.
    pub drawn: usize,
    /// Cached positions of the sequences in the drafting pass.
    pub draft_cached: usize,
}

impl Totals {
    /// Adds the rows of a sequence.
    pub fn add(&mut self, rows: &Rows) {
        let drawn = rows.slots.saturating_sub(1);
        self.sequences += 1;
        self.candidates += rows.candidates;
        self.logits += rows.logits;
        self.mask_rows += rows.groups * rows.slots;
        self.all_slots += rows.groups * drawn;
        self.in_pass += if rows.groups > 0 && !rows.apart { drawn } else { 0 };
        self.cached += rows.cached;
        self.group_cached += rows.cached * rows.groups.saturating_sub(1);
        if rows.apart {
            self.draft_rows += rows.slots;
            self.drawn += drawn;
            self.draft_cached += rows.cached;
        }
    }

    /// Returns the sums over the rows of all sequences of a step.
    pub fn of(sequences: &[Rows]) -> Self {
        let mut totals = Self::default();
        sequences.iter().for_each(|rows| totals.add(rows));
        totals
    }
}

impl Machine {
    /// Returns the duration of a step in seconds, without noise.
    pub fn seconds(&self, sequences: &[Rows]) -> f64 {
        self.seconds_of(&Totals::of(sequences))
    }

    /// Returns the duration in seconds of a step with these sums over its rows, without noise.
    pub fn seconds_of(&self, totals: &Totals) -> f64 {
        let Totals { candidates, logits, in_pass, .. } = *totals;
        if candidates == 0 {
            return self.step_us * 1e-6;
        }
        let layers = (self.head_layers + self.tail_layers) as f64;
        let tail = self.tail_layers as f64;
        let mut us = self.step_us + self.pass_us + layers * self.layer_us;
        us += self.head_layers as f64 * self.layer.us(candidates)
            + tail * self.layer.us(candidates + totals.mask_rows);
        us += self.sequence_us * totals.sequences as f64;
        us += if in_pass > 0 {
            let apart = self.lm_head.us(logits) + self.lm_head.us(in_pass);
            self.lm_head.us(logits + totals.all_slots).min(apart) + self.draft_row_us * in_pass as f64
        } else {
            self.lm_head.us(logits)
        };
        us += 1e-3 * layers * self.position_ns * totals.cached as f64;
        us += 1e-3 * tail * self.group_position_ns * totals.group_cached as f64;
        if totals.draft_rows > 0 {
            us += self.pass_us + tail * (self.layer_us + self.layer.us(totals.draft_rows));
            us += self.lm_head.us(totals.drawn) + self.draft_row_us * totals.drawn as f64;
            us += 1e-3 * tail * self.position_ns * totals.draft_cached as f64;
        }
        us * 1e-6
    }
}
