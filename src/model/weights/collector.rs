//! Takes tensors out of a checkpoint, and records every tensor that is missing or does not fit.

use std::collections::BTreeSet;

use super::source::TensorSource;
use crate::model::LoadError;
use crate::model::format::safetensors::Checkpoint;
use crate::tensor::Tensor;

/// Takes tensors from a checkpoint by name, and records problems. For a tensor that is missing or does not fit, it
/// returns `None` and records a problem, so that one traversal finds all problems.
pub(in crate::model) struct Collector<'a> {
    checkpoint: &'a Checkpoint,
    used: BTreeSet<String>,
    problems: Vec<LoadError>,
}

/// The result of taking all tensors of a model from a checkpoint.
pub(in crate::model) struct Collected<T> {
    /// The weights, or all problems with them.
    pub(in crate::model) weights: Result<T, Vec<LoadError>>,
    /// Names of the requested tensors that exist, whether they fit or not.
    pub(in crate::model) used: BTreeSet<String>,
}

impl<T> Collected<T> {
    /// Returns the weights, or the first problem with them.
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

    /// Records a problem that is not about a requested tensor.
    pub(super) fn report(&mut self, problem: LoadError) {
        self.problems.push(problem);
    }

    /// Ends the collection: returns `weights`, or all problems if a tensor was missing or did not fit.
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
    fn contains(&self, name: &str) -> bool {
        self.checkpoint.contains(name)
    }

    fn tensor(&mut self, name: &str, shape: &[usize]) -> Option<Tensor> {
        if self.checkpoint.contains(name) {
            self.used.insert(name.to_owned());
        }
        self.checkpoint.tensor_of_shape(name, shape).map_err(|problem| self.problems.push(problem)).ok()
    }
}
