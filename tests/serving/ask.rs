//! Random requests, which can be made again from their parameters.

use std::time::Instant;

use flexdraft::acceptance::Rule;
use flexdraft::decode::{
    Confidence, HookError, LogitsHook, MaskProvider, PromptLookup, Proposal, Proposer, Request,
};
use flexdraft::processors::LogitProcessors;
use flexdraft::sampling::SamplingParams;

use crate::support::noise::SplitMix;
use crate::support::processors::all_but;

/// The most new tokens that a request or its caller asks for, plus one.
pub const MOST_NEW_TOKENS: usize = 25;

/// The parameters of a request.
#[derive(Clone, Debug)]
pub struct Ask {
    pub prompt: Vec<u32>,
    pub max_new_tokens: usize,
    pub logprobs: Option<usize>,
    /// Whether the request's deadline has passed when it is added.
    pub is_late: bool,
    sampling: SamplingParams,
    rule: Rule,
    seed: u64,
    priority: i32,
    drafting: bool,
    block_size: Option<usize>,
    threshold: f32,
    stop_ids: Vec<u32>,
    processors: LogitProcessors,
    hook: Option<Mistake>,
    mask: Option<Mistake>,
    proposer: Option<Source>,
}

/// A hook's mistake: at a position, of a kind. A hook without a mistake has a position that no request reaches.
#[derive(Clone, Copy, Debug)]
struct Mistake {
    at: usize,
    kind: u64,
}

#[derive(Clone, Copy, Debug)]
enum Source {
    Lookup,
    /// A source that draws its tokens.
    Drawing(usize),
    /// A source that fails at a position.
    Failing(usize),
}

impl LogitsHook for Mistake {
    fn edit(&mut self, position: usize, _: &[u32], logits: &mut [f32]) -> Result<(), HookError> {
        logits[3] = f32::NEG_INFINITY;
        match self.kind {
            _ if position != self.at => {}
            0 => return Err("planted".into()),
            1 => logits.fill(f32::NEG_INFINITY),
            _ => logits[0] = f32::NAN,
        }
        Ok(())
    }
}

impl MaskProvider for Mistake {
    fn fill(
        &mut self,
        prompt: &[u32],
        output: &[u32],
        draft: &[u32],
        masks: &mut [u32],
    ) -> Result<(), HookError> {
        let (position, words) = (prompt.len() + output.len(), masks.len() / (draft.len() + 1));
        for (row, mask) in masks.chunks_exact_mut(words).enumerate() {
            // Each position forbids another id.
            mask[0] &= !(1 << ((position + row) % 29));
            if position + row == self.at {
                mask.fill(0);
            }
        }
        Ok(())
    }
}

impl Proposer for Source {
    fn propose(&mut self, prefix: &[u32], proposal: &mut Proposal<'_>) -> Result<(), HookError> {
        match *self {
            Self::Lookup => PromptLookup { shortest: 1, ..PromptLookup::default() }.propose(prefix, proposal),
            Self::Failing(at) if prefix.len() >= at => Err("planted".into()),
            Self::Failing(_) => Ok(proposal.push(prefix[0])?),
            Self::Drawing(len) => {
                for _ in 0..len {
                    let sum: u64 =
                        prefix.iter().chain(proposal.tokens()).map(|&token| u64::from(token) + 1).sum();
                    let mut random = SplitMix(sum);
                    let logits: Vec<f32> =
                        (0..proposal.vocab_size()).map(|_| 3.0 * random.signed()).collect();
                    proposal.draw(&logits)?;
                }
                Ok(())
            }
        }
    }
}

impl Ask {
    /// Returns a random request. Some prompts have the token `bad`, whose embedding has a NaN; other ids are below it.
    pub fn random(random: &mut SplitMix, bad: u32) -> Self {
        let mut below = |limit: u64| random.bits() % limit;
        // Many prompts begin with a part of one of three texts.
        let text = below(5);
        let common = if text < 3 { below(18) } else { 0 };
        let mut words = SplitMix(text);
        let mut prompt: Vec<u32> = (0..common).map(|_| (words.bits() % u64::from(bad)) as u32).collect();
        prompt.extend((0..=below(8)).map(|_| below(u64::from(bad)) as u32));
        if below(10) == 0 {
            let place = below(prompt.len() as u64) as usize;
            prompt[place] = bad;
        }
        let len = prompt.len();
        let mut mistake = || Mistake {
            at: if below(4) == 0 { len + below(12) as usize } else { usize::MAX },
            kind: below(3),
        };
        let (hook, mask) = (mistake(), mistake());
        let vocab = bad as usize + 1;
        let mut some = |odds: u64| below(odds) == 0;
        let has = [(); 9].map(|()| some(4));
        let late = some(40);
        let ids = [(); 6].map(|()| below(u64::from(bad)) as u32);
        let sampling = SamplingParams {
            temperature: [0.0, 1.0, 0.8][below(3) as usize],
            top_k: [0, 0, 7][below(3) as usize],
            top_p: [1.0, 1.0, 0.9][below(3) as usize],
            min_p: [0.0, 0.0, 0.05][below(3) as usize],
        };
        Self {
            max_new_tokens: below(MOST_NEW_TOKENS as u64) as usize,
            logprobs: has[0].then_some(2),
            is_late: late,
            sampling,
            rule: [Rule::Match, Rule::Match, Rule::Match, Rule::Rejection, Rule::Block][below(5) as usize],
            seed: below(1000),
            priority: below(3) as i32 - 1,
            drafting: below(8) > 0,
            block_size: has[1].then_some(1 + below(4) as usize),
            threshold: [0.0, 0.01, 0.3][below(3) as usize],
            stop_ids: if has[2] { vec![ids[0]] } else { Vec::new() },
            processors: LogitProcessors {
                repetition_penalty: if has[3] { 1.3 } else { 1.0 },
                frequency_penalty: if has[4] { 0.4 } else { 0.0 },
                presence_penalty: if has[4] { -0.2 } else { 0.0 },
                logit_bias: if has[5] { [(ids[1], 1.5), (ids[2], -2.0)].into() } else { Default::default() },
                min_tokens: if has[2] { 5 } else { 0 },
                bad_words: if has[6] { vec![vec![ids[3], ids[4]], vec![ids[4], ids[4]]] } else { Vec::new() },
                allowed: has[7].then(|| all_but(ids[5], vocab)),
            },
            hook: has[8].then_some(hook),
            mask: (below(4) == 0).then_some(mask),
            proposer: match below(10) {
                0..4 => Some(Source::Lookup),
                4 => Some(Source::Drawing(1 + below(9) as usize)),
                5 => Some(Source::Failing(len + below(20) as usize)),
                _ => None,
            },
            prompt,
        }
    }

    /// Returns the request: as it was asked for, or without what changes none of its tokens.
    pub fn request(&self, vocab: usize, as_asked: bool) -> Request {
        assert!(self.prompt.iter().all(|&id| (id as usize) < vocab));
        Request {
            sampling: self.sampling,
            rule: self.rule,
            seed: self.seed,
            stop_ids: self.stop_ids.clone(),
            processors: self.processors.clone(),
            processors_on_drafts: as_asked && self.seed.is_multiple_of(2),
            logits_hook: self.hook.map(|hook| Box::new(hook) as _),
            mask_provider: self.mask.map(|mask| Box::new(mask) as _),
            priority: self.priority,
            confidence: Confidence { threshold: self.threshold, ..Confidence::default() },
            block_size: self.block_size.filter(|_| as_asked),
            drafting: self.drafting,
            proposer: self.proposer.filter(|_| as_asked).map(|source| Box::new(source) as _),
            logprobs: self.logprobs.filter(|_| as_asked),
            deadline: (as_asked && self.is_late).then(Instant::now),
            ..Request::new(self.prompt.clone(), self.max_new_tokens)
        }
    }

    /// Returns whether the request must get the same tokens in every mode and batch.
    pub fn is_certain(&self) -> bool {
        self.sampling.is_greedy() || self.rule == Rule::Match
    }

    /// Returns whether the request's proposer fails at some position.
    pub fn proposer_fails(&self) -> bool {
        matches!(self.proposer, Some(Source::Failing(_)))
    }
}
