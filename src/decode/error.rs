//! Errors of the engine: requests that it refuses, and failed steps.

use super::request_id::RequestId;
use crate::device::DeviceError;
use crate::logits::LogitsFault;
use crate::processors::ProcessorError;
use crate::sampling::SamplingError;

/// An error of a request, of an engine's options, or of a step.
#[derive(Clone, Debug, thiserror::Error, PartialEq)]
#[non_exhaustive]
pub enum DecodeError {
    /// A request has an empty prompt.
    #[error("the prompt is empty")]
    EmptyPrompt,
    /// A prompt token is not in the target's vocabulary.
    #[error("prompt token {token} at position {position} is out of vocabulary ({vocab_size} ids)")]
    TokenOutOfVocabulary {
        /// The token id.
        token: u32,
        /// The token's position in the prompt.
        position: usize,
        /// V: the number of token ids in the vocabulary.
        vocab_size: usize,
    },
    /// A prompt is longer than the target's context.
    #[error("the prompt has {tokens} tokens, the context is {context_len}")]
    PromptTooLong {
        /// Number of tokens in the prompt.
        tokens: usize,
        /// Number of positions in the target's context.
        context_len: usize,
    },
    /// A block size is 0, or larger than the block size that the drafter was trained with.
    #[error("block size {requested} is not in 1..={trained}, the drafter's own")]
    BlockSize {
        /// The requested block size.
        requested: usize,
        /// The block size that the drafter was trained with.
        trained: usize,
    },
    /// A confidence threshold is outside [0, 1].
    #[error("confidence threshold must be at least 0 and at most 1, found {0}")]
    Threshold(f32),
    /// Sampling parameters are out of range.
    #[error(transparent)]
    Sampling(#[from] SamplingError),
    /// Parameters of logit processors are out of range.
    #[error(transparent)]
    Processors(#[from] ProcessorError),
    /// The policy drafts, but the model has no drafter.
    #[error("mode `{mode}` needs a drafter; without a drafter, only `ar` runs")]
    NoDrafter {
        /// The policy's name.
        mode: &'static str,
    },
    /// The policy asks for mask groups in the verification pass, but the drafter can draft only after that pass.
    #[error(
        "mode `{mode}` drafts in the verification pass; a mask group of {drafter} begins with the bonus token, which is \
         known only after that pass, so `sequential`, `auto` and `ar` run"
    )]
    DraftsAfterVerification {
        /// The policy's name.
        mode: &'static str,
        /// The name of the drafter's kind.
        drafter: &'static str,
    },
    /// An engine option is 0.
    #[error("{option} must be at least 1")]
    ZeroOption {
        /// The option's name.
        option: &'static str,
    },
    /// A probe was requested from an engine that has requests.
    #[error("a probe needs an engine without requests")]
    ProbeOfBusyEngine,
    /// A request does not fit the KV cache, even without other requests.
    #[error(
        "the KV cache is too small: the request needs {needed} pages of {page_size} tokens, there are {pages}"
    )]
    CacheExhausted {
        /// Number of pages that the request needs.
        needed: usize,
        /// Number of pages in the whole cache.
        pages: usize,
        /// Number of tokens per page.
        page_size: usize,
    },
    /// The target's logits for a token have a NaN, a +∞, or −∞ for every id, so that no token can be drawn from them.
    /// The error ends only the request in which it occurs.
    #[error("the target's logits for position {position} have {fault}")]
    Logits {
        /// The position of the token that was to be drawn.
        position: usize,
        /// The fault of the logits.
        fault: LogitsFault,
    },
    /// A hook of a request returned an error, panicked, or left logits from which no token can be drawn. The error ends
    /// only the request in which it occurs.
    #[error("the {hook} failed at position {position}: {reason}")]
    Hook {
        /// The kind of hook.
        hook: &'static str,
        /// The position of the token that was to be chosen.
        position: usize,
        /// The hook's own error or panic, or what is wrong with the logits that it left.
        reason: String,
    },
    /// The device failed in a step of these requests. No request lost its state: the step may be repeated, with or
    /// without some of them.
    #[error("the step of requests {} failed: {source}", list(requests))]
    Step {
        /// The requests that the step was for.
        requests: Vec<RequestId>,
        /// The error of the device.
        source: DeviceError,
    },
    /// The device failed outside a step, so no request is affected.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

impl DecodeError {
    /// Returns the error of the device, if the device failed.
    pub fn device(&self) -> Option<&DeviceError> {
        match self {
            Self::Step { source, .. } | Self::Device(source) => Some(source),
            _ => None,
        }
    }

    /// Returns whether the caller can avoid the error by changing a request or an option. Otherwise the device, the
    /// model or a hook failed.
    pub fn is_of_the_request(&self) -> bool {
        !matches!(self, Self::Logits { .. } | Self::Hook { .. } | Self::Step { .. } | Self::Device(_))
    }
}

fn list(requests: &[RequestId]) -> String {
    requests.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
