//! What a step has to do at least: the bytes it reads and the operations it takes.

use std::ops::AddAssign;

use flexdraft::model::weights::{AttentionWeights, LinearWeights};

use super::Step;
use crate::models::Weights;

/// Bytes read and floating-point operations.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Work {
    pub bytes: f64,
    pub flops: f64,
}

impl AddAssign for Work {
    fn add_assign(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.flops += other.flops;
    }
}

/// Elements and stored bytes of some matrices.
#[derive(Clone, Copy, Default)]
struct Matrices {
    elements: f64,
    bytes: f64,
}

impl Matrices {
    fn of<'a>(layers: impl IntoIterator<Item = &'a LinearWeights>) -> Self {
        layers.into_iter().fold(Self::default(), |sum, layer| Self {
            elements: sum.elements + layer.weight.elements().len() as f64,
            bytes: sum.bytes + layer.weight.byte_len() as f64,
        })
    }

    /// A product of so many rows, which reads the matrices once; nothing without rows.
    fn times(self, rows: usize) -> Work {
        if rows == 0 {
            return Work::default();
        }
        Work { bytes: self.bytes, flops: 2.0 * self.elements * rows as f64 }
    }
}

fn attention(weights: &AttentionWeights) -> Matrices {
    Matrices::of([&weights.q, &weights.k, &weights.v, &weights.o])
}

impl Work {
    /// A step of `batch` sequences after `context` positions, whose KV cache takes `kv_bytes` bytes an
    /// element.
    pub fn of_step(weights: &Weights, step: &Step, batch: usize, context: usize, kv_bytes: usize) -> Self {
        let target = &weights.target;
        let config = &target.config;
        let shape = config.attention;
        let drafter = weights.drafter.as_ref();
        let tail = drafter.map_or(0, |drafter| drafter.attention.len());
        let head = Matrices {
            elements: target.lm_head.elements().len() as f64,
            bytes: target.lm_head.byte_len() as f64,
        };
        let mut work = Self::default();
        for pass in &step.passes {
            let (candidates, masks) = (batch * pass.candidates, batch * pass.groups.len() * pass.slots);
            for (index, layer) in target.layers.iter().enumerate() {
                let in_tail = index + tail >= config.layers;
                let masks = if in_tail { masks } else { 0 };
                let rows = candidates + masks;
                if rows == 0 {
                    continue;
                }
                work += attention(&layer.attention).times(candidates);
                if let Some(layer) =
                    drafter.and_then(|d| d.attention.get((index + tail).checked_sub(config.layers)?))
                {
                    work += attention(layer).times(masks);
                }
                work += Matrices::of([&layer.gate, &layer.up, &layer.down]).times(rows);
                let positions = (batch * (context + pass.candidates)) as f64;
                let kv = 2.0 * (shape.kv_heads * shape.head_dim) as f64 * positions;
                // On average: a candidate sees those before it and itself.
                let seen = context as f64 + (pass.candidates + 1) as f64 / 2.0;
                work += Self {
                    bytes: kv * kv_bytes as f64,
                    flops: 4.0 * (shape.q_heads * shape.head_dim) as f64 * seen * rows as f64,
                };
            }
            if pass.candidates > 0 {
                work += head.times(batch * step.logits);
            }
        }
        if step.drafts > 0 {
            let rows = batch * step.drafts;
            work += head.times(rows);
            if let Some(calibrator) = drafter.and_then(|drafter| drafter.calibrator.as_ref()) {
                work += Matrices::of([&calibrator.hidden, &calibrator.output]).times(rows);
            }
        }
        work
    }
}
