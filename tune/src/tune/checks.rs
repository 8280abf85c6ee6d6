//! Checks of a run's transcripts before training, and of its weights during training.

use std::path::Path;

use candle_core::DType;
use flexdraft::model::ModelConfig;

use super::batch::anchor_range;
use crate::error::{Result, TuneError};
use crate::optimizer::AdamW;
use crate::transcripts::Transcript;

/// The unit of held-out text that an evaluation needs.
pub(super) const TO_WALK: &str =
    "held-out transcripts with two response tokens, among those that an evaluation walks";

/// The amounts of transcripts that a run needs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Amounts {
    /// Number of transcripts per step.
    pub sequences: usize,
    /// Number of held-out transcripts that an evaluation walks.
    pub evaluate_on: usize,
}

/// Checks the transcripts of a run, and returns the indices of the training transcripts that have an anchor.
///
/// # Errors
/// [`TuneError::Setting`] for a transcript without tokens, with more tokens than the target's context or with ids outside
/// its vocabulary; [`TuneError::TooLittleData`], which names `out`.
pub(super) fn usable_transcripts(
    train: &[Transcript],
    heldout: &[Transcript],
    target: &ModelConfig,
    amounts: Amounts,
    out: &Path,
) -> Result<Vec<usize>> {
    let usable: Vec<usize> = train
        .iter()
        .enumerate()
        .filter(|(_, t)| !anchor_range(t).is_empty())
        .map(|(index, _)| index)
        .collect();
    for (number, transcript) in train.iter().chain(heldout).enumerate() {
        check_transcript(number, transcript, target)?;
    }
    let for_a_step = "training transcripts with two response tokens, one per sequence of a step";
    let evaluated = heldout.iter().take(amounts.evaluate_on);
    let walked = evaluated.filter(|transcript| transcript.response.len() >= 2).count();
    for (found, unit, needed) in [(usable.len(), for_a_step, amounts.sequences), (walked, TO_WALK, 1)] {
        if found < needed {
            return Err(TuneError::TooLittleData { path: out.into(), found, unit, needed });
        }
    }
    Ok(usable)
}

/// Checks that a transcript has tokens, no more than the target's context, and only ids of the target's vocabulary.
fn check_transcript(number: usize, transcript: &Transcript, target: &ModelConfig) -> Result<()> {
    let tokens = transcript.tokens();
    if tokens.is_empty() {
        let found = format!("0 in transcript {number}");
        return Err(TuneError::setting("the number of tokens", found, "at least 1"));
    }
    if tokens.len() > target.context_len {
        let (found, expected) =
            (format!("{} in transcript {number}", tokens.len()), format!("at most {}", target.context_len));
        return Err(TuneError::setting("the number of tokens", found, expected + ", the target's context"));
    }
    let vocab_size = target.vocab_size;
    match tokens.iter().find(|&&token| token as usize >= vocab_size) {
        Some(token) => {
            let (found, expected) =
                (format!("{token} in transcript {number}"), format!("below {vocab_size}"));
            Err(TuneError::setting("a token id", found, expected))
        }
        None => Ok(()),
    }
}

/// Checks that every weight is finite: a step with a finite gradient but an absurd learning rate leaves weights that
/// are not. `checkpoint` is the step of the checkpoint on disk.
///
/// # Errors
/// [`TuneError::WeightsNotFinite`]; candle's errors.
pub(super) fn check_weights(optimizer: &AdamW, step: usize, checkpoint: usize) -> Result<()> {
    for parameter in optimizer.parameters() {
        // Zero times infinity is not a number, nor is a sum with it.
        let zeros = parameter.var.as_detached_tensor().affine(0.0, 0.0)?;
        let sum = zeros.sum_all()?.to_dtype(DType::F64)?.to_scalar::<f64>()?;
        if !sum.is_finite() {
            return Err(TuneError::WeightsNotFinite { tensor: parameter.name.clone(), step, checkpoint });
        }
    }
    Ok(())
}
