//! The command `flexdraft-tune headroom`, which estimates the possible gain of a chain.

use candle_core::DType;
use flexdraft::decode::{Confidence, ConfidenceStrategy};
use flexdraft_tune::chain::ChainHeads;
use flexdraft_tune::drafter::Drafter;
use flexdraft_tune::headroom::{Source, measure};
use flexdraft_tune::target::FrozenTarget;
use flexdraft_tune::tune::Compute;
use flexdraft_tune::{Result, TuneError, transcripts};

use super::chain_args::HeadroomArgs;
use super::{models, output};

/// Walks the transcripts that the arguments name.
pub fn headroom(args: &HeadroomArgs) -> Result<()> {
    if !(0.0..1.0).contains(&args.confidence_threshold) {
        let expected = "at least 0 and below 1";
        return Err(TuneError::setting("--confidence-threshold", args.confidence_threshold, expected));
    }
    let weights = models::target(&args.target)?;
    let exported = models::drafter(&args.draft, &weights.config)?;
    let vocab_size = weights.config.vocab_size;
    let mut walked = transcripts::read(&args.transcripts, vocab_size)?;
    walked.truncate(args.limit.unwrap_or(usize::MAX));
    let longest = args.max_new_tokens.unwrap_or(usize::MAX);
    walked.iter_mut().for_each(|transcript| transcript.response.truncate(longest));
    if !walked.iter().any(|transcript| transcript.response.len() >= 2) {
        let (path, unit) = (args.transcripts.clone(), "transcripts with two response tokens");
        return Err(TuneError::TooLittleData { path, found: 0, unit, needed: 1 });
    }
    if let Some(long) = walked.iter().position(|transcript| transcript.len() > weights.config.context_len) {
        let found = format!("{} in transcript {long}", walked[long].len());
        let expected = format!("at most {}, the target's context", weights.config.context_len);
        return Err(TuneError::setting("the number of tokens", found, expected));
    }
    let counted = args.counted.as_ref().map(|path| transcripts::read(path, vocab_size)).transpose()?;

    let target = FrozenTarget::new(&weights, DType::from(Compute::from(args.compute)), &args.device.open()?)?;
    let drafter = Drafter::from_weights(&weights, &target, &exported)?;
    let chain = exported.chain.as_ref().map(|chain| ChainHeads::from_weights(&target, chain)).transpose()?;
    let source = Source {
        target: &target,
        drafter: &drafter,
        chain: chain.as_ref(),
        confidence: Confidence {
            threshold: args.confidence_threshold,
            strategy: ConfidenceStrategy::CumulativeProduct,
        },
        counted: counted.as_deref(),
    };
    let (_, headroom) = measure(source, &walked)?;
    output::print(&headroom, args.json)
}
