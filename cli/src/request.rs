//! The request to the engine that the arguments of a command describe.

use flexdraft::decode::{PromptLookup, Proposer, Request};
use flexdraft::processors::LogitProcessors;

use crate::args::{DecodingArgs, SamplingArgs};

/// Makes a request, not yet validated, that continues a prompt. Its drafts are looked up in the text if `looks_up`, and
/// the drafter's own drafts see biased and forbidden tokens.
pub fn request(
    decoding: &DecodingArgs,
    sampling: &SamplingArgs,
    processors: LogitProcessors,
    prompt: Vec<u32>,
    stop_ids: &[u32],
    seed: u64,
    looks_up: bool,
) -> Request {
    let lookup = || Box::new(PromptLookup::default()) as Box<dyn Proposer>;
    Request {
        stop_ids: stop_ids.to_vec(),
        processors,
        processors_on_drafts: true,
        sampling: sampling.params(),
        rule: decoding.rule.into(),
        seed,
        block_size: decoding.block_size,
        confidence: decoding.confidence(),
        proposer: looks_up.then(lookup),
        record: true,
        ..Request::new(prompt, decoding.max_new_tokens)
    }
}
