//! Targets and drafters over small vocabularies, whose logits are random functions of all tokens so far.

use std::collections::BTreeMap;

use flexdraft::processors::{History, LogitProcessors};
use flexdraft::random::{Purpose, Stream};
use flexdraft::sampling::{SamplingParams, softmax, warp};
use flexdraft_reference::process::{self, RowMask, process, process_draft};
use proptest::prelude::*;

use crate::support::processors::processors;
use crate::support::reference;

/// The number of generated tokens whose joint distribution is compared.
pub const COMPARED: usize = 4;

/// The request's stop id, which a minimum length forbids.
const STOP: u32 = 1;

/// A target and a drafter over a small vocabulary, whose logits are random functions of all tokens so far.
#[derive(Clone, Debug)]
pub struct World {
    pub seed: u64,
    pub vocab: usize,
    /// Number of last tokens that the target's logits depend on.
    pub order: usize,
    pub drafter: Drafter,
    /// Block size of the drafter.
    pub block_size: usize,
    pub verify_len: VerifyLen,
    pub processors: LogitProcessors,
    /// Whether bias and mask of the processors act on the drafter's logits too.
    pub processors_on_drafts: bool,
    /// The masks that a mask provider fills.
    pub row_mask: Option<RowMask>,
    pub sampling: SamplingParams,
}

#[derive(Clone, Copy, Debug)]
pub enum Drafter {
    /// The drafter's logits are independent of the target's.
    Unrelated,
    /// The drafter's logits are the target's logits after the bonus token, plus noise.
    Near,
    /// The drafter's logits are the target's own logits after the bonus token. The drafter then proposes from the
    /// target's distribution in slot 1, and in every slot if the target ignores the tokens before.
    Target,
    /// A proposal whose tokens count as certain: one token has all of the mass. The token is a function of all tokens so
    /// far.
    Certain,
    /// A proposal that is drawn token by token: each distribution is a function of the proposal's tokens before it.
    Following,
}

/// A rule that decides how many draft tokens are verified: the draft is verified up to slot j if a condition holds.
#[derive(Clone, Copy, Debug)]
pub enum VerifyLen {
    Fixed(usize),
    /// The condition is that the product of the confidences is at least this number; at least 1 slot is verified.
    Confidence(f32),
    /// The condition is a function of the draft tokens before slot j, d_1..d_{j−1}, which is allowed.
    EarlierDrafts,
    /// The condition is a function of the draft token d_j itself, which is not allowed.
    OwnDraft,
}

impl VerifyLen {
    /// Returns whether slot `slot` is drafted, given the draft tokens before it and the confidences up to it.
    pub fn before_drawing(self, slot: usize, earlier: &[u32], confidences: &[f32]) -> bool {
        match self {
            Self::Fixed(verify_len) => slot <= verify_len,
            Self::Confidence(threshold) => {
                slot == 1 || confidences[..slot].iter().product::<f32>() >= threshold
            }
            Self::EarlierDrafts => earlier.iter().sum::<u32>() % 2 == 0,
            Self::OwnDraft => true,
        }
    }

    /// Returns whether a slot is verified, given its token.
    pub fn after_drawing(self, token: u32) -> bool {
        !matches!(self, Self::OwnDraft) || token == 0
    }
}

impl World {
    /// Returns random logits that are often ordinary, and sometimes −∞ for some ids or for all but one.
    fn logits(&self, salt: usize, tokens: &[u32]) -> Vec<f32> {
        let key = tokens.iter().fold(1, |key, &token| key * self.vocab + token as usize);
        let stream = |slot| Stream::new(self.seed, Purpose::TargetDraw, 8 * salt + slot, key);
        let shape = stream(1).uniform();
        let peak = (stream(2).uniform() * self.vocab as f64) as usize;
        stream(0)
            .gumbels()
            .zip(stream(3).gumbels())
            .take(self.vocab)
            .enumerate()
            .map(|(id, (logit, impossible))| {
                let dropped = shape < 0.1 || (shape < 0.35 && impossible > 0.7);
                if dropped && id != peak { f32::NEG_INFINITY } else { logit }
            })
            .collect()
    }

    /// Returns the target's logits after `prefix`.
    fn target_logits(&self, prefix: &[u32]) -> Vec<f32> {
        self.logits(0, &prefix[prefix.len().saturating_sub(self.order)..])
    }

    /// Returns the drafter's logits of slot `slot` after the tokens `prefix` and the tokens `draft` of the slots before,
    /// without bias and mask.
    pub fn plain_draft_logits(&self, prefix: &[u32], draft: &[u32], slot: usize) -> Vec<f32> {
        let own = match self.drafter {
            Drafter::Following => self.logits(slot, &extended(&[prefix, draft].concat(), slot as u32)),
            _ => self.logits(slot, prefix),
        };
        let target = self.target_logits(prefix);
        match self.drafter {
            Drafter::Unrelated => own,
            Drafter::Near => target.iter().zip(own).map(|(t, own)| t + 0.5 * own.max(-2.0)).collect(),
            Drafter::Target => target,
            Drafter::Following => own,
            Drafter::Certain => {
                let token = (0..self.vocab).max_by(|&a, &b| own[a].total_cmp(&own[b]));
                (0..self.vocab).map(|id| if Some(id) == token { 0.0 } else { f32::NEG_INFINITY }).collect()
            }
        }
    }

    /// Returns whether bias and mask act on the draft. They never act on proposals.
    fn edits_drafts(&self) -> bool {
        self.processors_on_drafts && !matches!(self.drafter, Drafter::Certain | Drafter::Following)
    }

    /// Returns the logits that the engine draws slot `slot` from, after the tokens `prefix` and the tokens `draft` of the
    /// slots before.
    pub fn draft_logits(&self, prefix: &[u32], draft: &[u32], slot: usize) -> Vec<f32> {
        let mut logits = self.plain_draft_logits(prefix, draft, slot);
        if self.edits_drafts() {
            self.processors.draft_edits().apply(slot - 1, &mut logits);
        }
        logits
    }

    /// Returns the same logits by the reference's processors.
    pub fn reference_draft_logits(&self, prefix: &[u32], draft: &[u32], slot: usize) -> Vec<f32> {
        let logits = self.plain_draft_logits(prefix, draft, slot);
        let processors = reference::processors(&self.processors, self.row_mask);
        if self.edits_drafts() { process_draft(&logits, &processors) } else { logits }
    }

    /// Returns the target's distribution after `prefix`, whose first token is the prompt, by the reference's processors.
    pub fn target(&self, prefix: &[u32]) -> Vec<f64> {
        let processors = reference::processors(&self.processors, self.row_mask);
        let history = process::History { tokens: prefix, prompt_len: 1, end_ids: &[STOP] };
        softmax(&warp(&process(&self.target_logits(prefix), &processors, history), &self.sampling))
    }

    /// Returns the target's distributions after `tokens`, which begin with the prompt, and every prefix of `draft`,
    /// by the engine's processors.
    pub fn target_rows(&self, tokens: &[u32], draft: &[u32]) -> Vec<Vec<f64>> {
        let history = History { tokens, prompt_len: 1, draft, stop_ids: &[STOP] };
        let mut edits = self.processors.edits(history, self.vocab);
        if let Some(row_mask) = self.row_mask {
            let rows = 0..=draft.len();
            let masks = rows.flat_map(|i| row_mask(&[tokens, &draft[..i]].concat())).collect();
            edits.allow_by_row(masks, self.vocab);
        }
        let row = |i: usize| {
            let mut logits = self.target_logits(&[tokens, &draft[..i]].concat());
            edits.apply(i, &mut logits);
            softmax(&warp(&logits, &self.sampling))
        };
        (0..=draft.len()).map(row).collect()
    }

    /// Returns the target's joint distribution of the next `COMPARED` tokens.
    pub fn target_law(&self, prompt: &[u32]) -> Law {
        let mut law = Law::new();
        self.continue_exactly(prompt.to_vec(), prompt.len(), 1.0, &mut law);
        law
    }

    /// Adds to `law` the distribution of the tokens after `tokens`, up to `COMPARED` tokens after the prompt, times
    /// `weight`.
    pub fn continue_exactly(&self, tokens: Vec<u32>, prompt_len: usize, weight: f64, law: &mut Law) {
        if tokens.len() >= prompt_len + COMPARED {
            *law.entry(tokens[prompt_len..][..COMPARED].to_vec()).or_default() += weight;
            return;
        }
        for (token, p) in possible(&self.target(&tokens)) {
            self.continue_exactly(extended(&tokens, token), prompt_len, weight * p, law);
        }
    }
}

/// The probability of each sequence of tokens.
pub type Law = BTreeMap<Vec<u32>, f64>;

/// Iterates over the ids with a probability above 0, and their probabilities.
pub fn possible(row: &[f64]) -> impl Iterator<Item = (u32, f64)> {
    (0..).zip(row.iter().copied()).filter(|&(_, p)| p > 0.0)
}

/// Returns `tokens` with one more token.
pub fn extended(tokens: &[u32], token: u32) -> Vec<u32> {
    [tokens, &[token]].concat()
}

/// Returns the mask of all ids but the last of `tokens`.
pub fn no_repeats(tokens: &[u32]) -> Vec<u32> {
    vec![!(1 << tokens[tokens.len() - 1])]
}

/// Generates targets and drafters of every kind.
pub fn worlds() -> impl Strategy<Value = World> {
    let verify_len = prop_oneof![
        (0usize..=3).prop_map(VerifyLen::Fixed),
        (0.01f32..0.9).prop_map(VerifyLen::Confidence),
        Just(VerifyLen::EarlierDrafts),
    ];
    let drafter = prop_oneof![
        Just(Drafter::Unrelated),
        Just(Drafter::Near),
        Just(Drafter::Target),
        Just(Drafter::Certain),
        Just(Drafter::Following),
    ];
    let sampling = (
        0.4f32..2.0,
        0usize..4,
        prop_oneof![Just(1.0f32), 0.3f32..1.0],
        prop_oneof![Just(0.0f32), 0.0f32..0.6],
    )
        .prop_map(|(temperature, top_k, top_p, min_p)| SamplingParams {
            temperature,
            top_k,
            top_p,
            min_p,
        });
    let off = || Just(LogitProcessors::default());
    let vocab = (2usize..=4).prop_flat_map(move |vocab| {
        // A mask and bad words on a vocabulary of two ids would often forbid both.
        let processors = if vocab > 2 { processors(vocab).boxed() } else { off().boxed() };
        (Just(vocab), prop_oneof![1 => off().boxed(), 1 => processors])
    });
    let row_mask = prop::option::weighted(0.3, Just(no_repeats as RowMask));
    let processors = (vocab, any::<bool>(), row_mask);
    (any::<u64>(), processors, 0usize..=3, drafter, 1usize..=4, verify_len, sampling).prop_map(
        |(seed, (processors, on_drafts, row_mask), order, drafter, block_size, verify_len, sampling)| World {
            seed,
            vocab: processors.0,
            order,
            drafter,
            block_size,
            verify_len,
            processors: processors.1,
            processors_on_drafts: on_drafts,
            row_mask,
            sampling,
        },
    )
}

/// Seeds of random targets and drafters with which every planted bug has an effect.
pub const ORDINARY: std::ops::Range<u64> = 0..40;

/// Returns a target and a drafter with which planted bugs have an effect.
pub fn ordinary(seed: u64) -> World {
    World {
        seed,
        vocab: 2 + seed as usize % 2,
        order: 2,
        drafter: Drafter::Near,
        block_size: 4,
        verify_len: VerifyLen::Fixed(3),
        processors: LogitProcessors::default(),
        processors_on_drafts: false,
        row_mask: None,
        sampling: SamplingParams { top_p: 0.9, ..SamplingParams::at_temperature(0.5) },
    }
}
