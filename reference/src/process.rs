//! Logit processors: penalties, bias and forbidden ids, which act on the target's logits before warping.
//!
//! The processors act in this order. Row i's history is the prompt, the output, and the candidates c_0..c_i.
//!
//! | processor | effect on the logit of an id | source |
//! |---|---|---|
//! | repetition penalty θ | divided by θ if positive, multiplied by θ if negative, for ids of the history | arXiv 1909.05858, section 4.1 |
//! | frequency penalty f | minus f · count, the occurrences in the history after the prompt | OpenAI API |
//! | presence penalty p | minus p, for ids that occur in the history after the prompt | OpenAI API |
//! | bias | plus the bias of the id | OpenAI API |
//! | minimum length | −∞ for end ids while the history has fewer tokens after the prompt | |
//! | bad words | −∞ for an id that would complete a forbidden sequence of ids | |
//! | bit mask | −∞ for ids that the mask does not allow | |
//! | bit masks by row | −∞ for ids that the mask of the row does not allow | |
//!
//! They change the target's distribution. The drafter's distribution q may be any distribution, so drafts keep the q
//! that they were drawn from. A request may ask that bias, bit mask and bad words of one id, which are known before the
//! draft is drawn and are the same for all slots, change the drafter's logits too ([`process_draft`]).

use crate::float::Float;

/// The source of a bit mask for each row, such as a grammar: returns the mask of the ids that may follow these tokens,
/// which are the row's history. Words and bits are those of [`Processors::mask`].
pub type RowMask = fn(&[u32]) -> Vec<u32>;

/// Parameters of the logit processors; the numbers do not depend on the float type of the logits.
#[derive(Clone, Debug)]
pub struct Processors {
    /// Repetition penalty θ, above 0; 1 is off.
    pub repetition_penalty: f64,
    /// Frequency penalty f; 0 is off.
    pub frequency_penalty: f64,
    /// Presence penalty p; 0 is off.
    pub presence_penalty: f64,
    /// Additive biases, at most one per id.
    pub bias: Vec<(u32, f64)>,
    /// Minimum length: the number of tokens after the prompt before which no end id may come.
    pub min_tokens: usize,
    /// Bad words: sequences of ids, each at least one id long, which may not occur.
    pub bad_words: Vec<Vec<u32>>,
    /// The ids that a bit mask allows: bit id mod 32 of word id / 32. `None` allows every id.
    pub mask: Option<Vec<u32>>,
    /// The source of a further bit mask for each row. `None` allows every id.
    pub row_mask: Option<RowMask>,
}

impl Processors {
    /// Processors that change nothing.
    pub const OFF: Self = Self {
        repetition_penalty: 1.0,
        frequency_penalty: 0.0,
        presence_penalty: 0.0,
        bias: Vec::new(),
        min_tokens: 0,
        bad_words: Vec::new(),
        mask: None,
        row_mask: None,
    };

    /// Returns the logit of `id` after the bias.
    fn biased<F: Float>(&self, id: u32, logit: F) -> F {
        let bias = self.bias.iter().find(|(biased, _)| *biased == id);
        bias.map_or(logit, |(_, bias)| logit + F::from_f64(*bias))
    }

    /// Returns whether the bit mask allows `id`.
    fn allows(&self, id: u32) -> bool {
        self.mask.as_ref().is_none_or(|mask| is_set(mask, id))
    }
}

/// Returns bit `id` of a mask.
fn is_set(mask: &[u32], id: u32) -> bool {
    mask[id as usize / 32] >> (id % 32) & 1 == 1
}

/// The tokens that come before the token that a row predicts.
#[derive(Clone, Copy, Debug)]
pub struct History<'a> {
    /// The prompt, the output and the candidates up to the row's own token.
    pub tokens: &'a [u32],
    /// The number of tokens of the prompt.
    pub prompt_len: usize,
    /// End ids, which the minimum length forbids.
    pub end_ids: &'a [u32],
}

/// Returns `logits` `[V]` after `processors`. If the processors forbid every id, every logit is −∞, and the request
/// cannot go on.
pub fn process<F: Float>(logits: &[F], processors: &Processors, history: History<'_>) -> Vec<F> {
    let generated = &history.tokens[history.prompt_len..];
    let forbidden = forbidden_ids(processors, history);
    let row_mask = processors.row_mask.map(|mask| mask(history.tokens));
    let value = |(id, &logit): (usize, &F)| {
        let id = id as u32;
        let mut logit = logit;
        if history.tokens.contains(&id) {
            let penalty = F::from_f64(processors.repetition_penalty);
            logit = if logit > F::ZERO { logit / penalty } else { logit * penalty };
        }
        let count = generated.iter().filter(|&&token| token == id).count();
        if count > 0 {
            logit = logit - F::from_f64(processors.frequency_penalty) * F::from_f64(count as f64);
            logit = logit - F::from_f64(processors.presence_penalty);
        }
        logit = processors.biased(id, logit);
        let allowed = processors.allows(id) && row_mask.as_ref().is_none_or(|mask| is_set(mask, id));
        if allowed && !forbidden.contains(&id) { logit } else { F::NEG_INFINITY }
    };
    logits.iter().enumerate().map(value).collect()
}

/// Returns the calibrated logits `[V]` of a draft's slot after bias, bit mask and bad words of one id, if the request
/// asks for it. The draft is drawn from these logits: they come before the choice of a chain's ids, confidence
/// and warping.
pub fn process_draft<F: Float>(logits: &[F], processors: &Processors) -> Vec<F> {
    let value = |(id, &logit): (u32, &F)| {
        let is_bad = processors.bad_words.iter().any(|word| word[..] == [id]);
        if processors.allows(id) && !is_bad { processors.biased(id, logit) } else { F::NEG_INFINITY }
    };
    (0..).zip(logits).map(value).collect()
}

/// Returns the ids that the minimum length and the bad words forbid.
fn forbidden_ids(processors: &Processors, history: History<'_>) -> Vec<u32> {
    let mut forbidden = vec![];
    if history.tokens.len() - history.prompt_len < processors.min_tokens {
        forbidden.extend(history.end_ids);
    }
    for word in &processors.bad_words {
        // A word without ids forbids nothing.
        if let Some((last, before)) = word.split_last()
            && history.tokens.ends_with(before)
        {
            forbidden.push(*last);
        }
    }
    forbidden
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: f64 = f64::NEG_INFINITY;
    /// The test's history is the prompt 0, 1 and the output 1, 1, 2.
    const HISTORY: History<'_> = History { tokens: &[0, 1, 1, 1, 2], prompt_len: 2, end_ids: &[3] };

    fn processed(processors: Processors) -> Vec<f64> {
        process(&[1.0, -1.0, 2.0, 4.0], &processors, HISTORY)
    }

    #[test]
    fn each_processor_by_itself() {
        let off = Processors::OFF;
        assert_eq!(processed(off.clone()), [1.0, -1.0, 2.0, 4.0]);
        assert_eq!(processed(Processors { repetition_penalty: 2.0, ..off.clone() }), [0.5, -2.0, 1.0, 4.0]);
        assert_eq!(processed(Processors { frequency_penalty: 0.25, ..off.clone() }), [1.0, -1.5, 1.75, 4.0]);
        assert_eq!(processed(Processors { presence_penalty: 0.5, ..off.clone() }), [1.0, -1.5, 1.5, 4.0]);
        assert_eq!(processed(Processors { bias: vec![(3, -1.0)], ..off.clone() }), [1.0, -1.0, 2.0, 3.0]);
        assert_eq!(processed(Processors { min_tokens: 3, ..off.clone() }), [1.0, -1.0, 2.0, 4.0]);
        assert_eq!(processed(Processors { min_tokens: 4, ..off.clone() }), [1.0, -1.0, 2.0, NONE]);
        let bad_words = vec![vec![1], vec![1, 2, 0], vec![2, 1, 3], vec![0, 1, 1, 1, 2, 2]];
        assert_eq!(processed(Processors { bad_words, ..off.clone() }), [NONE, NONE, NONE, 4.0]);
        assert_eq!(processed(Processors { mask: Some(vec![0b0101]), ..off.clone() }), [1.0, NONE, 2.0, NONE]);
        let row_mask: RowMask = |tokens| vec![1 << tokens[tokens.len() - 1] | 1 << tokens.len().min(3)];
        assert_eq!(processed(Processors { row_mask: Some(row_mask), ..off }), [NONE, NONE, 2.0, 4.0]);
    }

    #[test]
    fn bias_mask_and_bad_words_of_one_id_change_a_draft() {
        let processors = Processors {
            repetition_penalty: 2.0,
            frequency_penalty: 0.25,
            presence_penalty: 0.5,
            bias: vec![(2, 8.0), (3, 1.0)],
            min_tokens: 9,
            bad_words: vec![vec![0], vec![1, 2]],
            mask: Some(vec![0b0111]),
            row_mask: Some(|_| vec![0]),
        };
        assert_eq!(process_draft(&[1.0, -1.0, 2.0, 4.0], &processors), [NONE, -1.0, 10.0, NONE]);
        assert_eq!(process_draft(&[1.0, f64::NAN], &Processors::OFF)[0], 1.0);
    }

    #[test]
    fn the_order_is_that_of_the_method() {
        // The expected logit is (2 / 2 − 0.25) − 0.5 + 8: processors in any other order would give another number.
        let processors = Processors {
            repetition_penalty: 2.0,
            frequency_penalty: 0.25,
            presence_penalty: 0.5,
            bias: vec![(2, 8.0), (3, 1.0)],
            min_tokens: 9,
            ..Processors::OFF
        };
        assert_eq!(processed(processors), [0.5, -3.0, 8.25, NONE]);
    }

    #[test]
    fn a_repetition_penalty_keeps_zero_and_infinities() {
        let processors = Processors { repetition_penalty: 2.0, ..Processors::OFF };
        let history = History { tokens: &[0, 1, 2], prompt_len: 0, end_ids: &[] };
        assert_eq!(
            process(&[0.0, f32::NEG_INFINITY, f32::INFINITY], &processors, history),
            [0.0, f32::NEG_INFINITY, f32::INFINITY]
        );
    }
}
