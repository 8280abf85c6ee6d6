//! The request to the engine that the arguments of a command describe.

use flexdraft::decode::Request;
use flexdraft::processors::LogitProcessors;

use crate::args::{DecodingArgs, SamplingArgs};

/// Makes a request, not yet validated, that continues a prompt.
pub fn request(
    decoding: &DecodingArgs,
    sampling: &SamplingArgs,
    processors: LogitProcessors,
    prompt: Vec<u32>,
    stop_ids: &[u32],
    seed: u64,
) -> Request {
    Request {
        stop_ids: stop_ids.to_vec(),
        processors,
        sampling: sampling.params(),
        rule: decoding.rule.into(),
        seed,
        block_size: decoding.block_size,
        confidence: decoding.confidence(),
        record: true,
        ..Request::new(prompt, decoding.max_new_tokens)
    }
}
