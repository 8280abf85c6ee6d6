//! The slots of a training step that a chain learns from.

use candle_core::{Device, Result, Tensor};

use super::batch::SlotLabels;
use crate::chain::{ChainHeads, Likeliest};
use crate::loss::{Labels, Prediction};
use crate::shortlist::Shortlist;
use crate::target::FrozenTarget;

/// The slots of a training step whose label is among their most likely ids.
#[derive(Default)]
pub(super) struct ChainRows {
    /// The true token before each slot.
    before: Vec<u32>,
    likeliest: Likeliest,
    /// Hidden rows of the slots, in parts; empty if the chain does not need them.
    hidden: Vec<Tensor>,
    /// For each slot, the index of its label among its ids, and its weight.
    labels: Labels,
    /// Indices of the rows that are slot 1.
    first_slots: Vec<usize>,
}

impl ChainRows {
    /// Adds the slots with these labels, most likely ids and hidden rows; the labels are places in `shortlist`.
    ///
    /// # Errors
    /// Candle's errors: out of memory.
    pub fn add(
        &mut self,
        labels: &SlotLabels,
        shortlist: &Shortlist,
        likeliest: &Likeliest,
        hidden: Option<&Tensor>,
    ) -> Result<()> {
        let mut kept = Vec::new();
        for (row, &slot) in labels.slots.iter().enumerate() {
            let (label, weight) = (shortlist.id(labels.labels.ids[row]), labels.labels.weights[row]);
            let place = likeliest.row(row, likeliest.per_row).0.iter().position(|&id| id == label);
            let (Some(place), true) = (place, weight > 0.0) else { continue };
            if slot == 1 {
                self.first_slots.push(self.before.len());
            }
            self.before.push(labels.before[row]);
            self.labels.ids.push(place as u32);
            self.labels.weights.push(weight);
            kept.push(row as u32);
        }
        self.likeliest.extend(&likeliest.select(kept.iter().map(|&row| row as usize), likeliest.per_row));
        if let Some(hidden) = hidden.filter(|_| !kept.is_empty()) {
            let kept = Tensor::from_slice(&kept, kept.len(), &Device::Cpu)?.to_device(hidden.device())?;
            self.hidden.push(hidden.index_select(&kept, 0)?);
        }
        Ok(())
    }

    /// Divides the weights by their sum.
    pub fn normalise(&mut self) {
        let total: f32 = self.labels.weights.iter().sum();
        self.labels.weights.iter_mut().for_each(|weight| *weight /= total);
    }

    /// Returns the weighted sum of the cross-entropies over the most likely ids, and the prediction of each row; `None`
    /// if no slot has its label among its most likely ids.
    ///
    /// # Errors
    /// Candle's errors: out of memory.
    pub fn loss(
        &self,
        heads: &ChainHeads,
        target: &FrozenTarget,
    ) -> Result<Option<(Tensor, Vec<Prediction>)>> {
        if self.before.is_empty() {
            return Ok(None);
        }
        let hidden = if self.hidden.is_empty() { None } else { Some(Tensor::cat(&self.hidden, 0)?) };
        heads.loss(target, &self.before, &self.likeliest, hidden.as_ref(), &self.labels).map(Some)
    }

    /// Returns the share of the rows of slot 1 whose label is the most probable id; 0 without such rows.
    pub fn slot_1_accuracy(&self, predictions: &[Prediction]) -> f64 {
        let right = |&&row: &&usize| predictions[row].token == self.labels.ids[row];
        let right = self.first_slots.iter().filter(right).count();
        right as f64 / self.first_slots.len().max(1) as f64
    }
}
