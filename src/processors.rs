//! Logit processors: penalties, bias and forbidden ids, which act on the target's logits before warping.
//!
//! The processors act in the order of the fields of [`LogitProcessors`]. All of them act on the target's distribution
//! p. Drafts keep the distribution q that they were drawn from, which every acceptance rule allows. A request may ask that
//! bias, mask and bad words of one id act on the drafter's logits too ([`LogitProcessors::draft_edits`]).
//!
//! Row i of a step has a history of its own: the prompt, the output, and the candidates c_0..c_i.
//! [`LogitProcessors::edits`] lists, before a step runs, what the processors change in each row. A device applies the
//! [`LogitEdits`] where it reads the logits, by the same f32 operations on every device.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use crate::layout::MAX_BLOCK_SIZE;

/// An error in the parameters of logit processors.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ProcessorError {
    /// A repetition penalty that is not a finite number above 0.
    #[error("repetition penalty must be finite and above 0, found {0}")]
    RepetitionPenalty(f32),
    /// A frequency penalty that is infinite or NaN.
    #[error("frequency penalty must be finite, found {0}")]
    FrequencyPenalty(f32),
    /// A presence penalty that is infinite or NaN.
    #[error("presence penalty must be finite, found {0}")]
    PresencePenalty(f32),
    /// A bias that is infinite or NaN.
    #[error("the bias of id {id} must be finite, found {bias}")]
    Bias {
        /// The id that has the bias.
        id: u32,
        /// The bias.
        bias: f32,
    },
    /// A bad word (a forbidden sequence of ids) without ids.
    #[error("bad word {index} is empty")]
    EmptyBadWord {
        /// Index of the bad word.
        index: usize,
    },
    /// An id that is not in the target's vocabulary.
    #[error("id {id} of the {parameter} is out of vocabulary ({vocab_size} ids)")]
    OutOfVocabulary {
        /// The parameter that contains the id.
        parameter: &'static str,
        /// The id.
        id: u32,
        /// V: the vocabulary size.
        vocab_size: usize,
    },
    /// A mask of allowed ids whose length does not fit the vocabulary.
    #[error("a mask of {vocab_size} ids has {expected} words, found {found}")]
    MaskLength {
        /// V: the vocabulary size.
        vocab_size: usize,
        /// The expected number of words: ⌈V / 32⌉.
        expected: usize,
        /// The number of words that the mask has.
        found: usize,
    },
    /// A mask and bad words of one id that forbid every id.
    #[error("the mask and the bad words of one id forbid every id")]
    NoAllowedId,
}

/// Parameters of the logit processors, in the order in which they act.
#[derive(Clone, Debug, PartialEq)]
pub struct LogitProcessors {
    /// Repetition penalty (arXiv 1909.05858): divides positive logits of the ids in prompt and output, and multiplies
    /// negative logits of these ids; 1 is off.
    pub repetition_penalty: f32,
    /// Frequency penalty: the amount that is subtracted from an id's logit for each of its occurrences in the output;
    /// 0 is off.
    pub frequency_penalty: f32,
    /// Presence penalty: the amount that is subtracted from the logits of ids that occur in the output; 0 is off.
    pub presence_penalty: f32,
    /// Logit bias: the number that is added to an id's logit.
    pub logit_bias: BTreeMap<u32, f32>,
    /// Minimum length: the number of output tokens before which the request's stop ids are forbidden.
    pub min_tokens: usize,
    /// Bad words: sequences of ids that may not occur. An id that would complete one in prompt and output is
    /// forbidden.
    pub bad_words: Vec<Vec<u32>>,
    /// The ids that are allowed, as ⌈V / 32⌉ words of 32 bits: bit id mod 32 of word id / 32. `None` allows every id.
    pub allowed: Option<Arc<[u32]>>,
}

impl Default for LogitProcessors {
    fn default() -> Self {
        Self {
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            logit_bias: BTreeMap::new(),
            min_tokens: 0,
            bad_words: Vec::new(),
            allowed: None,
        }
    }
}

/// The tokens that come before the rows of logits of one sequence's step.
#[derive(Clone, Copy, Debug)]
pub struct History<'a> {
    /// The prompt and the output, up to the newest token, which is the step's first candidate.
    pub tokens: &'a [u32],
    /// The number of tokens of the prompt.
    pub prompt_len: usize,
    /// The draft tokens d_1..d_v under verification. Row i follows `tokens` and d_1..d_i.
    pub draft: &'a [u32],
    /// The request's stop ids.
    pub stop_ids: &'a [u32],
}

impl LogitProcessors {
    /// Checks the range of every parameter, and every id against a vocabulary of `vocab_size` ids.
    pub fn validate(&self, vocab_size: usize) -> Result<(), ProcessorError> {
        if !(self.repetition_penalty.is_finite() && self.repetition_penalty > 0.0) {
            return Err(ProcessorError::RepetitionPenalty(self.repetition_penalty));
        }
        if !self.frequency_penalty.is_finite() {
            return Err(ProcessorError::FrequencyPenalty(self.frequency_penalty));
        }
        if !self.presence_penalty.is_finite() {
            return Err(ProcessorError::PresencePenalty(self.presence_penalty));
        }
        let within = |parameter, id: u32| match (id as usize) < vocab_size {
            true => Ok(()),
            false => Err(ProcessorError::OutOfVocabulary { parameter, id, vocab_size }),
        };
        for (&id, &bias) in &self.logit_bias {
            within("logit bias", id)?;
            if !bias.is_finite() {
                return Err(ProcessorError::Bias { id, bias });
            }
        }
        for (index, word) in self.bad_words.iter().enumerate() {
            if word.is_empty() {
                return Err(ProcessorError::EmptyBadWord { index });
            }
            word.iter().try_for_each(|&id| within("bad words", id))?;
        }
        let expected = vocab_size.div_ceil(32);
        if let Some(found) = self.allowed.as_deref().map(<[u32]>::len).filter(|&found| found != expected) {
            return Err(ProcessorError::MaskLength { vocab_size, expected, found });
        }
        let banned = |id: u32| self.bad_words.iter().any(|word| *word == [id]);
        let mut ids = 0..vocab_size as u32;
        if ids.all(|id| !self.allowed.as_deref().is_none_or(|mask| allows(mask, id)) || banned(id)) {
            return Err(ProcessorError::NoAllowedId);
        }
        Ok(())
    }

    /// Returns the edits of the processors in rows 0..=v of the target's logits, for v draft tokens and a vocabulary
    /// of `vocab_size` ids.
    pub fn edits(&self, history: History<'_>, vocab_size: usize) -> LogitEdits<'_> {
        let mut edits = Vec::new();
        self.push_penalties(history, &mut edits);
        let rows = 0..history.draft.len() + 1;
        let biased = |(&id, &bias): (&u32, &f32)| Edit::new(id, rows.clone(), Effect::Bias(bias));
        edits.extend(self.logit_bias.iter().map(biased));
        self.push_forbidden(history, &mut edits);
        edits.retain(|edit| (edit.id as usize) < vocab_size);
        // The sort is stable: the edits of an id stay in the order in which they act.
        edits.sort_by_key(|edit| edit.id);
        LogitEdits {
            repetition_penalty: self.repetition_penalty,
            presence_penalty: self.presence_penalty,
            edits,
            allowed: self.allowed.as_deref(),
            allowed_by_row: None,
        }
    }

    /// Returns the edits that act on a drafter's logits, the same in every row: bias, mask, and bad words of one id, which
    /// no token before a row changes.
    pub fn draft_edits(&self) -> LogitEdits<'_> {
        let edit = |id, effect| Edit::new(id, 0..MAX_BLOCK_SIZE, effect);
        let biased = |(&id, &bias): (&u32, &f32)| edit(id, Effect::Bias(bias));
        let forbidden = |word: &Vec<u32>| match word[..] {
            [id] => Some(edit(id, Effect::Forbid)),
            _ => None,
        };
        let mut edits: Vec<Edit> = self.logit_bias.iter().map(biased).collect();
        edits.extend(self.bad_words.iter().filter_map(forbidden));
        edits.sort_by_key(|edit| edit.id);
        LogitEdits {
            repetition_penalty: 1.0,
            edits,
            allowed: self.allowed.as_deref(),
            ..LogitEdits::default()
        }
    }

    /// Adds the penalties of the ids that occur in the history of a row.
    fn push_penalties(&self, history: History<'_>, edits: &mut Vec<Edit>) {
        let repeats = self.repetition_penalty != 1.0;
        let counts = self.frequency_penalty != 0.0 || self.presence_penalty != 0.0;
        if !repeats && !counts {
            return;
        }
        let History { tokens, prompt_len, draft, .. } = history;
        // Each token, the first row of logits that follows it, and whether the token belongs to the output.
        let known = tokens.iter().enumerate().map(|(index, &id)| (id, 0, index >= prompt_len));
        let drafted = draft.iter().enumerate().map(|(index, &id)| (id, index + 1, true));
        let mut occurrences: Vec<(u32, usize, bool)> = known.chain(drafted).collect();
        occurrences.sort_unstable();
        for of_id in occurrences.chunk_by(|a, b| a.0 == b.0) {
            let mut count = 0;
            for (index, &(id, row, is_output)) in of_id.iter().enumerate() {
                count += usize::from(is_output);
                let end = of_id.get(index + 1).map_or(draft.len() + 1, |&(_, next, _)| next);
                let generated = (counts && count > 0).then_some(self.frequency_penalty * count as f32);
                if row < end && (repeats || generated.is_some()) {
                    edits.push(Edit::new(id, row..end, Effect::Penalty { repeats, generated }));
                }
            }
        }
    }

    /// Adds the ids that the minimum length and the bad words forbid.
    fn push_forbidden(&self, history: History<'_>, edits: &mut Vec<Edit>) {
        let History { tokens, prompt_len, draft, stop_ids } = history;
        let generated = tokens.len().saturating_sub(prompt_len);
        let short = self.min_tokens.saturating_sub(generated).min(draft.len() + 1);
        if short > 0 {
            edits.extend(stop_ids.iter().map(|&id| Edit::new(id, 0..short, Effect::Forbid)));
        }
        if self.bad_words.is_empty() {
            return;
        }
        let all = [tokens, draft].concat();
        for (last, before) in self.bad_words.iter().filter_map(|word| word.split_last()) {
            for row in 0..=draft.len() {
                if all[..tokens.len() + row].ends_with(before) {
                    edits.push(Edit::new(*last, row..row + 1, Effect::Forbid));
                }
            }
        }
    }
}

/// The edits of the logit processors in one sequence's rows of logits in one step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LogitEdits<'a> {
    repetition_penalty: f32,
    presence_penalty: f32,
    /// The edits, sorted by id; the edits of an id are in the order in which they act.
    edits: Vec<Edit>,
    /// The mask of allowed ids of all rows, `[⌈V / 32⌉]`.
    allowed: Option<&'a [u32]>,
    /// The masks of allowed ids of each row, `[v + 1, ⌈V / 32⌉]`, which the mask of all rows has already restricted, and
    /// the number of words per row.
    allowed_by_row: Option<(Vec<u32>, usize)>,
}

/// A change of one id's logit in some rows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Edit {
    pub(crate) id: u32,
    pub(crate) first_row: usize,
    pub(crate) end_row: usize,
    pub(crate) effect: Effect,
}

/// The effect of an edit on a logit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Effect {
    /// Applies the repetition penalty, if the id `repeats`, then the frequency and presence penalties, if the id is
    /// in the output: `generated` is the frequency penalty times the id's count.
    Penalty { repeats: bool, generated: Option<f32> },
    /// Adds a number to the logit.
    Bias(f32),
    /// Sets the logit to −∞.
    Forbid,
}

impl Edit {
    fn new(id: u32, rows: Range<usize>, effect: Effect) -> Self {
        Self { id, first_row: rows.start, end_row: rows.end, effect }
    }
}

impl LogitEdits<'_> {
    /// Returns whether the edits change no row.
    pub fn is_empty(&self) -> bool {
        self.edits.is_empty() && self.allowed.is_none() && self.allowed_by_row.is_none()
    }

    /// Allows in row i only ids of row i of `masks` `[v + 1, ⌈V / 32⌉]`, for a vocabulary of `vocab_size` ids. Rows beyond
    /// the masks allow no id.
    pub fn allow_by_row(&mut self, mut masks: Vec<u32>, vocab_size: usize) {
        let words = vocab_size.div_ceil(32).max(1);
        if let Some(allowed) = self.allowed {
            let all = allowed.iter().copied().chain(std::iter::repeat(0)).take(words);
            for row in masks.chunks_mut(words) {
                row.iter_mut().zip(all.clone()).for_each(|(word, all)| *word &= all);
            }
        }
        self.allowed_by_row = Some((masks, words));
    }

    /// Returns the repetition penalty: the divisor of positive logits, and the factor of negative logits, of repeated
    /// ids.
    pub(crate) fn repetition_penalty(&self) -> f32 {
        self.repetition_penalty
    }

    /// Returns the presence penalty.
    pub(crate) fn presence_penalty(&self) -> f32 {
        self.presence_penalty
    }

    /// Returns the edits, sorted by id; the edits of an id are in the order in which they act.
    pub(crate) fn edits(&self) -> &[Edit] {
        &self.edits
    }

    /// Returns the mask of allowed ids of row `row`, `[⌈V / 32⌉]`.
    pub(crate) fn allowed(&self, row: usize) -> Option<&[u32]> {
        match &self.allowed_by_row {
            Some((masks, words)) => Some(masks.chunks(*words).nth(row).unwrap_or(&[])),
            None => self.allowed,
        }
    }

    /// Returns whether rows may have different masks of allowed ids.
    pub(crate) fn has_masks_by_row(&self) -> bool {
        self.allowed_by_row.is_some()
    }

    /// Edits `logits` `[vocab]`, which are row `row` of the sequence.
    pub fn apply(&self, row: usize, logits: &mut [f32]) {
        for edit in self.edits.iter().filter(|edit| (edit.first_row..edit.end_row).contains(&row)) {
            let Some(logit) = logits.get_mut(edit.id as usize) else { continue };
            match edit.effect {
                Effect::Penalty { repeats, generated } => {
                    if repeats {
                        let penalty = self.repetition_penalty;
                        *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
                    }
                    if let Some(frequency) = generated {
                        *logit = (*logit - frequency) - self.presence_penalty;
                    }
                }
                Effect::Bias(bias) => *logit += bias,
                Effect::Forbid => *logit = f32::NEG_INFINITY,
            }
        }
        if let Some(mask) = self.allowed(row) {
            let forbidden = (0..).zip(logits).filter(|&(id, _)| !allows(mask, id));
            forbidden.for_each(|(_, logit)| *logit = f32::NEG_INFINITY);
        }
    }
}

/// Returns whether a mask of allowed ids allows `id`.
pub(crate) fn allows(mask: &[u32], id: u32) -> bool {
    mask.get(id as usize / 32).is_some_and(|word| word >> (id % 32) & 1 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: f32 = f32::NEG_INFINITY;

    fn off() -> LogitProcessors {
        LogitProcessors::default()
    }

    /// Returns rows 0..=2 of four equal rows of logits after the prompt 0, 1, the output 1, 1 and the draft 2, 1.
    fn rows(processors: &LogitProcessors) -> Vec<Vec<f32>> {
        assert_eq!(processors.validate(4), Ok(()));
        let history = History { tokens: &[0, 1, 1, 1], prompt_len: 2, draft: &[2, 1], stop_ids: &[3, 9] };
        let edits = processors.edits(history, 4);
        let row = |row| {
            let mut logits = vec![1.0, -1.0, 2.0, 4.0];
            edits.apply(row, &mut logits);
            logits
        };
        (0..3).map(row).collect()
    }

    #[test]
    fn every_row_has_its_own_history() {
        assert!(
            off().edits(History { tokens: &[1], prompt_len: 1, draft: &[2], stop_ids: &[3] }, 4).is_empty()
        );
        assert_eq!(
            rows(&LogitProcessors { repetition_penalty: 2.0, ..off() }),
            [[0.5, -2.0, 2.0, 4.0], [0.5, -2.0, 1.0, 4.0], [0.5, -2.0, 1.0, 4.0]]
        );
        assert_eq!(
            rows(&LogitProcessors { frequency_penalty: 0.25, ..off() }),
            [[1.0, -1.5, 2.0, 4.0], [1.0, -1.5, 1.75, 4.0], [1.0, -1.75, 1.75, 4.0]]
        );
        assert_eq!(
            rows(&LogitProcessors { presence_penalty: 0.5, ..off() }),
            [[1.0, -1.5, 2.0, 4.0], [1.0, -1.5, 1.5, 4.0], [1.0, -1.5, 1.5, 4.0]]
        );
        assert_eq!(
            rows(&LogitProcessors { min_tokens: 4, ..off() }),
            [[1.0, -1.0, 2.0, NONE], [1.0, -1.0, 2.0, NONE], [1.0, -1.0, 2.0, 4.0]]
        );
        let bad_words = vec![vec![2], vec![1, 1, 0], vec![1, 2, 1], vec![2, 1, 3]];
        assert_eq!(
            rows(&LogitProcessors { bad_words, ..off() }),
            [[NONE, -1.0, NONE, 4.0], [1.0, NONE, NONE, 4.0], [1.0, -1.0, NONE, NONE]]
        );
        let allowed = Some(Arc::from([0b0110]));
        assert_eq!(rows(&LogitProcessors { allowed, ..off() }), [[NONE, -1.0, 2.0, NONE]; 3]);
    }

    #[test]
    fn the_order_is_that_of_the_fields() {
        let processors = LogitProcessors {
            repetition_penalty: 2.0,
            frequency_penalty: 0.25,
            presence_penalty: 0.5,
            logit_bias: BTreeMap::from([(2, 8.0), (3, 1.0)]),
            min_tokens: 9,
            ..off()
        };
        // The logit of id 2 after d_1: (2 / 2 − 0.25) − 0.5 + 8. Any other order gives another number.
        assert_eq!(rows(&processors)[1], [0.5, -3.0, 8.25, NONE]);
    }

    #[test]
    fn parameters_out_of_range_are_named() {
        let error = |processors: LogitProcessors| processors.validate(40).unwrap_err().to_string();
        for penalty in [0.0, -1.0, f32::NAN, f32::INFINITY] {
            let found = error(LogitProcessors { repetition_penalty: penalty, ..off() });
            assert_eq!(found, format!("repetition penalty must be finite and above 0, found {penalty}"));
        }
        let found = error(LogitProcessors { frequency_penalty: f32::NAN, ..off() });
        assert_eq!(found, "frequency penalty must be finite, found NaN");
        let found = error(LogitProcessors { presence_penalty: NONE, ..off() });
        assert_eq!(found, "presence penalty must be finite, found -inf");
        let found = error(LogitProcessors { logit_bias: BTreeMap::from([(3, NONE)]), ..off() });
        assert_eq!(found, "the bias of id 3 must be finite, found -inf");
        let found = error(LogitProcessors { logit_bias: BTreeMap::from([(40, 1.0)]), ..off() });
        assert_eq!(found, "id 40 of the logit bias is out of vocabulary (40 ids)");
        let found = error(LogitProcessors { bad_words: vec![vec![1], vec![]], ..off() });
        assert_eq!(found, "bad word 1 is empty");
        let found = error(LogitProcessors { bad_words: vec![vec![1, 41]], ..off() });
        assert_eq!(found, "id 41 of the bad words is out of vocabulary (40 ids)");
        let found = error(LogitProcessors { allowed: Some(Arc::from([1])), ..off() });
        assert_eq!(found, "a mask of 40 ids has 2 words, found 1");
        // The mask's bits beyond the vocabulary allow no id.
        let nothing = LogitProcessors { allowed: Some(Arc::from([2, !0xff])), ..off() };
        assert_eq!(nothing.validate(40), Ok(()));
        let nothing = LogitProcessors { bad_words: vec![vec![1]], ..nothing };
        assert_eq!(error(nothing), "the mask and the bad words of one id forbid every id");
    }
}
