//! Taking tensors out of a checkpoint, and remembering every one that does not fit.

use std::collections::BTreeSet;

use super::source::TensorSource;
use crate::model::LoadError;
use crate::model::format::safetensors::Checkpoint;
use crate::tensor::Tensor;

/// Takes tensors from a checkpoint. A tensor that is missing or does not fit is `None` here and a
/// problem in the list, so that one traversal finds all of them.
pub(in crate::model) struct Collector<'a> {
    checkpoint: &'a Checkpoint,
    used: BTreeSet<String>,
    problems: Vec<LoadError>,
}

/// What a traversal found.
pub(in crate::model) struct Collected<T> {
    /// The weights, or everything that is wrong with them.
    pub(in crate::model) weights: Result<T, Vec<LoadError>>,
    /// Names of the tensors that were asked for and are there, fitting or not.
    pub(in crate::model) used: BTreeSet<String>,
}

impl<T> Collected<T> {
    /// The weights, or the first thing that is wrong with them.
    pub(in crate::model) fn or_first_problem(self, checkpoint: &Checkpoint) -> Result<T, LoadError> {
        self.weights.map_err(|problems| {
            let nothing = || LoadError::NoCheckpoint { dir: checkpoint.dir().into() };
            problems.into_iter().next().unwrap_or_else(nothing)
        })
    }
}

impl<'a> Collector<'a> {
    pub(in crate::model) fn new(checkpoint: &'a Checkpoint) -> Self {
        Self { checkpoint, used: BTreeSet::new(), problems: Vec::new() }
    }

    /// Ends the traversal. `weights` is `None` only if there was a problem.
    pub(in crate::model) fn finish<T>(self, weights: Option<T>) -> Collected<T> {
        let Self { used, problems, .. } = self;
        let weights = match weights {
            Some(weights) if problems.is_empty() => Ok(weights),
            _ => Err(problems),
        };
        Collected { weights, used }
    }
}

impl TensorSource for Collector<'_> {
    fn tensor(&mut self, name: &str, shape: &[usize]) -> Option<Tensor> {
        if self.checkpoint.contains(name) {
            self.used.insert(name.to_owned());
        }
        self.checkpoint.tensor_of_shape(name, shape).map_err(|problem| self.problems.push(problem)).ok()
    }
}
