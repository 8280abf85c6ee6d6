//! The least work of a step: the bytes it must read and the operations it must execute.

use std::ops::AddAssign;

use flexdraft::device::AttentionShape;
use flexdraft::model::weights::{AttentionWeights, LinearWeights};
use flexdraft::tensor::Tensor;

use super::steps::Step;
use crate::models::Weights;

/// A number of bytes read, and a number of floating-point operations.
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

/// The number of elements of some weight matrices, and their size on the device in bytes.
#[derive(Clone, Copy, Debug, Default)]
struct Matrices {
    elements: f64,
    bytes: f64,
}

impl Matrices {
    /// Returns the work of multiplying the matrices with `rows` rows. It reads the matrices once; with no rows there is
    /// no work.
    fn times(self, rows: usize) -> Work {
        if rows == 0 {
            return Work::default();
        }
        Work { bytes: self.bytes, flops: 2.0 * self.elements * rows as f64 }
    }
}

/// The sizes in which a device stores weights and the KV cache.
#[derive(Clone, Copy, Debug)]
pub struct Storage {
    /// Size of an element of the KV cache, in bytes.
    pub kv: usize,
    /// Size of an element of a weight, in bytes; `None` if weights keep the type in which they were loaded.
    pub weight: Option<usize>,
}

impl Storage {
    fn matrices<'a>(self, tensors: impl IntoIterator<Item = &'a Tensor>) -> Matrices {
        tensors.into_iter().fold(Matrices::default(), |sum, tensor| {
            let elements = tensor.elements().len();
            let bytes = self.weight.map_or(tensor.byte_len(), |bytes| bytes * elements);
            Matrices { elements: sum.elements + elements as f64, bytes: sum.bytes + bytes as f64 }
        })
    }

    fn linear<'a>(self, layers: impl IntoIterator<Item = &'a LinearWeights>) -> Matrices {
        self.matrices(layers.into_iter().map(|layer| &layer.weight))
    }

    fn attention(self, weights: &AttentionWeights) -> Matrices {
        self.linear([&weights.q, &weights.k, &weights.v, &weights.o])
    }
}

/// The sizes of the matrices of a target and its drafter, kept after the weights are dropped.
#[derive(Clone, Debug)]
pub struct Sizes {
    shape: AttentionShape,
    storage: Storage,
    /// Attention and MLP matrices of each layer of the target.
    layers: Vec<(Matrices, Matrices)>,
    /// Attention matrices of the drafter in each of its layers.
    tail: Vec<Matrices>,
    head: Matrices,
    calibrator: Matrices,
}

impl Sizes {
    pub fn new(weights: &Weights, storage: Storage) -> Self {
        let target = &weights.target;
        let drafter = weights.drafter.as_ref();
        let layers = target.layers.iter().map(|layer| {
            (storage.attention(&layer.attention), storage.linear([&layer.gate, &layer.up, &layer.down]))
        });
        let calibrator = drafter.and_then(|drafter| drafter.calibrator.as_ref());
        Self {
            shape: target.config.attention,
            storage,
            layers: layers.collect(),
            tail: drafter.map_or(Vec::new(), |drafter| {
                drafter.attention.iter().map(|layer| storage.attention(layer)).collect()
            }),
            head: storage.matrices([&target.lm_head]),
            calibrator: storage.linear(calibrator.into_iter().flat_map(|c| [&c.hidden, &c.output])),
        }
    }

    /// Returns the work of a step of `batch` sequences that have `context` cached positions each.
    pub fn work(&self, step: &Step, batch: usize, context: usize) -> Work {
        let shape = self.shape;
        let head_part = self.layers.len().saturating_sub(self.tail.len());
        let mut work = Work::default();
        for pass in &step.passes {
            let (candidates, masks) = (batch * pass.candidates, batch * pass.groups.len() * pass.slots);
            for (index, (attention, mlp)) in self.layers.iter().enumerate() {
                let drafter = index.checked_sub(head_part).and_then(|index| self.tail.get(index));
                let masks = if drafter.is_some() { masks } else { 0 };
                let rows = candidates + masks;
                if rows == 0 {
                    continue;
                }
                work += attention.times(candidates);
                work += drafter.map_or(Work::default(), |drafter| drafter.times(masks));
                work += mlp.times(rows);
                let positions = (batch * (context + pass.candidates)) as f64;
                let kv = 2.0 * (shape.kv_heads * shape.head_dim) as f64 * positions;
                // A candidate row attends to the context and, on average, to half of the candidates, including itself.
                let seen = context as f64 + (pass.candidates + 1) as f64 / 2.0;
                work += Work {
                    bytes: kv * self.storage.kv as f64,
                    flops: 4.0 * (shape.q_heads * shape.head_dim) as f64 * seen * rows as f64,
                };
            }
            if pass.candidates > 0 {
                work += self.head.times(batch * step.logits);
            }
        }
        if step.drafts > 0 {
            let rows = batch * step.drafts;
            work += self.head.times(rows);
            work += self.calibrator.times(rows);
        }
        work
    }
}

#[cfg(test)]
mod tests {
    use flexdraft::model::weights::DrafterWeights;
    use flexdraft::tensor::DType;

    use super::*;
    use crate::bench::synthetic::Synthetic;

    const BF16: Storage = Storage { kv: 2, weight: None };

    #[test]
    fn the_floor_of_a_step_reads_weights_once() {
        let weights: Weights = Synthetic::Tiny.weights(4).unwrap();
        let sizes = Sizes::new(&weights, BF16);
        let ar = Step::autoregressive();
        let (one, more) = (sizes.work(&ar, 1, 0), sizes.work(&ar, 3, 0));
        // The keys and values of one position have 64 elements each per layer.
        let kv = |batch: usize| (4 * batch * 2 * 64 * 2) as f64;
        assert_eq!(one.bytes - kv(1), more.bytes - kv(3));
        let norms = (4 * (2 * 64 + 2 * 64) + 64) * 2;
        assert_eq!(one.bytes - kv(1), (weights.bytes_a_token() - norms) as f64);
        assert_eq!(3.0 * one.flops, more.flops);
    }

    #[test]
    fn a_step_with_orthrus_reads_the_weights_twice() {
        let target = Synthetic::Tiny.weights(4).unwrap().target;
        let drafter = DrafterWeights::random_orthrus(&target, 4, DType::Bf16, 2).unwrap();
        let sizes = Sizes::new(&Weights { target, drafter: Some(drafter) }, BF16);
        let bytes = |step: &Step| sizes.work(step, 1, 0).bytes;
        let kv = |positions: usize| (4 * positions * 2 * 64 * 2) as f64;
        let (ar, step) = (bytes(&Step::autoregressive()), bytes(&Step::sequential(3, 4)));
        assert_eq!(step - kv(4), 2.0 * (ar - kv(1)));
    }

    #[test]
    fn a_device_may_store_weights_its_own_way() {
        let weights: Weights = Synthetic::Tiny.weights(4).unwrap();
        let work =
            |weight| Sizes::new(&weights, Storage { weight, ..BF16 }).work(&Step::parallel(2, 4, 3), 2, 10);
        assert_eq!(work(None), work(Some(2)));
        assert!(work(Some(4)).bytes > 1.5 * work(None).bytes);
        assert_eq!(work(Some(4)).flops, work(None).flops);
    }
}
