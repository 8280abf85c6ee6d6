//! Finds the acceptance length τ of greedy transcripts by walking through them, as tuning finds its held-out τ.

use std::fmt;

use candle_core::{DType, Device};
use flexdraft::model::{DrafterWeights, TargetWeights};
use serde::{Deserialize, Serialize};

use super::decoding::Decoding;
use crate::chain::ChainHeads;
use crate::drafter::Drafter;
use crate::error::{Result, TuneError};
use crate::headroom::{Headroom, Source, measure};
use crate::target::FrozenTarget;
use crate::transcripts::Transcript;
use crate::tune::walk::Walk;

/// The result of walking transcripts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Walked {
    /// Acceptance length τ over the walks' steps; `None` if there are no steps.
    pub tau: Option<f64>,
    /// Number of transcripts walked.
    pub transcripts: usize,
    /// Number of transcripts left out because greedy decoding writes something else after their prompts.
    pub not_greedy: usize,
    /// Sums over all walked transcripts.
    #[serde(flatten)]
    pub walk: Walk,
    /// The bounds of the acceptance length along these transcripts.
    pub headroom: Headroom,
}

/// Walks the first `max_new_tokens` tokens of each transcript's response, with the confidence settings of `decoding`.
/// `responses` are the results of greedy decoding after the same prompts with the same limit. A transcript is walked
/// only if its response, cut to that limit, is a prefix of the decoded response; the others are counted as
/// `not_greedy`.
///
/// A walk takes the same steps as decoding. The last step counts the tokens up to the end of the transcript; decoding may
/// also accept drafts beyond the end, which it then drops. Products are computed in f32 on the CPU.
///
/// # Errors
/// [`TuneError::Setting`] for sampling that is not greedy or the wrong number of responses; candle's errors: out of
/// memory.
pub fn walk_greedy(
    weights: &TargetWeights,
    drafter: &DrafterWeights,
    transcripts: &[Transcript],
    responses: &[Vec<u32>],
    decoding: &Decoding,
) -> Result<Walked> {
    if !decoding.sampling.is_greedy() {
        let temperature = decoding.sampling.temperature;
        return Err(TuneError::setting("the temperature of a walk", temperature, "0"));
    }
    if responses.len() != transcripts.len() {
        let expected = format!("one per transcript, {}", transcripts.len());
        return Err(TuneError::setting("the number of responses", responses.len(), expected));
    }
    let greedy: Vec<Transcript> = transcripts
        .iter()
        .zip(responses)
        .filter_map(|(transcript, written)| {
            let mut transcript = transcript.clone();
            transcript.response.truncate(decoding.max_new_tokens);
            written.starts_with(&transcript.response).then_some(transcript)
        })
        .collect();
    let (count, not_greedy) = (greedy.len(), transcripts.len() - greedy.len());
    let target = FrozenTarget::new(weights, DType::F32, &Device::Cpu)?;
    let chain = drafter.chain.as_ref().map(|chain| ChainHeads::from_weights(&target, chain)).transpose()?;
    let drafter = Drafter::from_weights(weights, &target, drafter)?;
    let source = Source {
        target: &target,
        drafter: &drafter,
        chain: chain.as_ref(),
        confidence: decoding.confidence,
        counted: None,
    };
    let (walk, headroom) = measure(source, &greedy)?;
    Ok(Walked { tau: walk.tau(), transcripts: count, not_greedy, walk, headroom })
}

impl fmt::Display for Walked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tau, transcripts, not_greedy, .. } = self;
        match tau {
            Some(tau) => write!(f, "τ by walking transcripts {tau:>8.3}  of {transcripts}")?,
            None => {
                write!(f, "τ by walking transcripts     none  of {transcripts}: no response has two tokens")?
            }
        }
        if *not_greedy > 0 {
            write!(f, "; {not_greedy} left out, which greedy decoding does not write")?;
        }
        write!(f, "\n{}", self.headroom.to_string().trim_end())
    }
}
