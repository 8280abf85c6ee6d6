//! The gradients of packed training are right, and no weight of the target takes a gradient.

use std::collections::HashMap;

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor};
use flexdraft::model::DrafterKind;
use flexdraft::model::config::Architecture;
use flexdraft::model::weights::{ChainConfig, ChainKind, TargetWeights};
use flexdraft_tune::chain::{ChainShape, ChainSlots};
use flexdraft_tune::drafter::{Drafter, DrafterShape};
use flexdraft_tune::loss::{Labels, cross_entropy};
use flexdraft_tune::optimizer::Parameter;
use flexdraft_tune::shortlist::Shortlist;
use flexdraft_tune::target::FrozenTarget;
use flexdraft_tune::tune::{Batch, Corpus, Pick, SlotLabels};

use crate::common;

struct Setup {
    weights: TargetWeights,
    target: FrozenTarget,
    drafter: Drafter,
    corpus: Corpus,
    shortlist: Shortlist,
}

impl Setup {
    fn new(architecture: Architecture, bias: bool, shape: DrafterShape, listed: usize, dtype: DType) -> Self {
        let config = common::config(architecture, bias);
        let weights = common::target(&config);
        let target = FrozenTarget::new(&weights, dtype, &Device::Cpu).unwrap();
        let shortlist = Shortlist::most_frequent(listed, config.vocab_size, (0..31u32).rev());
        let drafter = common::drafter(&weights, &target, shape, &shortlist);
        let corpus = Corpus::new(common::transcripts(config.vocab_size), shape.tail_layers, 1.0, &target);
        Self { weights, target, drafter, corpus, shortlist }
    }

    /// Returns the loss over anchors of two transcripts, some of them near the end.
    fn loss(&mut self) -> Tensor {
        let picks = vec![
            Pick { transcript: 0, anchors: vec![4, 9, 19] },
            Pick { transcript: 1, anchors: vec![0, 10] },
        ];
        let batch = Batch::new(&mut self.corpus, &self.target, picks.clone()).unwrap();
        let block_size = self.drafter.block_size();
        let rows = batch.rows(block_size);
        let mut labels =
            SlotLabels::new(&picks, self.corpus.transcripts(), block_size, 4.0, &self.shortlist).unwrap();
        labels.divide(labels.weight());
        assert!((labels.weight() - 1.0).abs() < 1e-6);
        let slots = self.drafter.forward(&self.target, &rows).unwrap();
        let (head, calibration) = self.drafter.factors(&slots);
        cross_entropy(Some(head), calibration, &labels.labels).unwrap().0
    }

    fn gradients(&mut self) -> GradStore {
        self.loss().backward().unwrap()
    }
}

fn scalar(x: &Tensor) -> f64 {
    x.to_dtype(DType::F64).unwrap().to_scalar::<f64>().unwrap()
}

/// Checks the gradient of every parameter against finite differences of `loss`: the first element of each parameter and
/// every element that is a multiple of `every` after it. Returns the number of elements.
fn check(
    parameters: &[Parameter],
    gradients: &GradStore,
    every: usize,
    mut loss: impl FnMut() -> f64,
) -> usize {
    let mut checked = 0;
    for parameter in parameters {
        let gradient = gradients.get(parameter.var.as_tensor()).unwrap();
        let gradient = gradient.flatten_all().unwrap().to_vec1::<f64>().unwrap();
        let values = parameter.var.flatten_all().unwrap().to_vec1::<f64>().unwrap();
        let set = |values: Vec<f64>| {
            let values = Tensor::from_vec(values, parameter.var.shape(), &Device::Cpu).unwrap();
            parameter.var.set(&values).unwrap();
        };
        let largest = gradient.iter().fold(0f64, |a, g| a.max(g.abs()));
        assert!(largest > 0.0, "{} takes no gradient", parameter.name);
        for index in (0..values.len()).step_by(every) {
            let step = 1e-5;
            let mut moved = |by: f64| {
                let mut values = values.clone();
                values[index] += by;
                set(values);
                loss()
            };
            let expected = (moved(step) - moved(-step)) / (2.0 * step);
            let found = gradient[index];
            assert!(
                (found - expected).abs() <= 1e-6 * largest.max(1e-3),
                "{}[{index}]: {found} and {expected}",
                parameter.name
            );
            checked += 1;
        }
        set(values);
    }
    checked
}

#[test]
fn gradients_of_a_chain_are_finite_differences() {
    for kind in ChainKind::ALL {
        let mut setup = Setup::new(Architecture::Qwen3, false, common::SHAPE, 20, DType::F64);
        let Setup { target, drafter, corpus, shortlist, .. } = &mut setup;
        let chain = common::chain(target, ChainShape { config: ChainConfig { kind, top_k: 4 }, rank: 3 });
        let pick = Pick { transcript: 0, anchors: vec![4, 9] };
        let batch = Batch::new(corpus, target, vec![pick]).unwrap();
        let rows = batch.rows(4);
        let slots = drafter.forward(target, &rows).unwrap();
        let slots = ChainSlots::new(drafter, &slots, &rows.bonuses, shortlist, 8, true).unwrap();
        let before = [3, 5, 3, 30, 0, 5];
        let labels =
            Labels { ids: vec![0, 7, 2, 1, 3, 0], weights: vec![0.25, 0.25, 0.0, 0.125, 0.25, 0.125] };
        let loss = || {
            let hidden = slots.hidden.as_ref();
            chain.loss(target, &before, &slots.likeliest, hidden, &labels).unwrap().0
        };
        let gradients = loss().backward().unwrap();
        let checked = check(chain.parameters(), &gradients, 5, || scalar(&loss()));
        assert!(checked > 12, "{checked}");
        // The frozen drafter takes no gradient from the chain.
        assert!(drafter.parameters().iter().all(|p| gradients.get(p.var.as_tensor()).is_none()));
    }
}

#[test]
fn gradients_are_finite_differences() {
    let flexdraft = |rank, whole_tail| DrafterShape { rank, whole_tail, ..common::SHAPE };
    let orthrus = DrafterShape { kind: DrafterKind::Orthrus, tail_layers: 3, ..flexdraft(0, false) };
    for (architecture, bias, shape, listed) in [
        (Architecture::Qwen3, false, flexdraft(5, false), 0),
        (Architecture::Llama, true, flexdraft(5, false), 20),
        (Architecture::Llama, false, flexdraft(0, false), 0),
        (Architecture::Qwen3, false, flexdraft(5, true), 0),
        (Architecture::Qwen3, false, orthrus, 0),
    ] {
        let mut setup = Setup::new(architecture, bias, shape, listed, DType::F64);
        let gradients = setup.gradients();
        let parameters: Vec<_> = setup.drafter.parameters().to_vec();
        let checked = check(&parameters, &gradients, 37, || scalar(&setup.loss()));
        assert!(checked > 40);
    }
}

#[test]
fn the_fast_paths_compute_the_same() {
    for (architecture, listed) in [(Architecture::Qwen3, 0), (Architecture::Llama, 20)] {
        let all = |dtype| {
            let mut setup = Setup::new(architecture, false, common::SHAPE, listed, dtype);
            let loss = scalar(&setup.loss());
            let gradients = setup.gradients();
            let by_name: HashMap<String, Vec<f64>> = setup
                .drafter
                .parameters()
                .iter()
                .map(|p| {
                    let gradient = gradients.get(p.var.as_tensor()).unwrap().to_dtype(DType::F64).unwrap();
                    (p.name.clone(), gradient.flatten_all().unwrap().to_vec1::<f64>().unwrap())
                })
                .collect();
            (loss, by_name)
        };
        let ((plain_loss, plain), (fast_loss, fast)) = (all(DType::F64), all(DType::F32));
        assert!((plain_loss - fast_loss).abs() < 1e-5, "{plain_loss} {fast_loss}");
        for (name, plain) in &plain {
            let largest = plain.iter().fold(0f64, |a, g| a.max(g.abs()));
            for (a, b) in plain.iter().zip(&fast[name]) {
                assert!((a - b).abs() < 1e-4 * largest, "{name}: {a} {b}");
            }
        }
    }
}

#[test]
fn nothing_of_the_target_takes_a_gradient() {
    let mut setup = Setup::new(Architecture::Qwen3, false, common::SHAPE, 0, DType::F32);
    let before = flexdraft_tune::hash::of_target(&setup.weights).value();
    let gradients = setup.gradients();
    let trained: Vec<_> = setup.drafter.parameters().iter().map(|p| p.var.as_tensor().id()).collect();
    assert!(gradients.get_ids().filter(|id| trained.contains(id)).count() == trained.len());
    for frozen in [setup.target.lm_head(), setup.target.norm()] {
        assert!(gradients.get(frozen).is_none());
    }
    for layer in setup.target.tail(3) {
        for frozen in [&layer.input_norm, &layer.projectors.qkv.weight, &layer.projectors.o.weight] {
            assert!(gradients.get(frozen).is_none());
        }
    }
    assert_eq!(flexdraft_tune::hash::of_target(&setup.weights).value(), before);
}
