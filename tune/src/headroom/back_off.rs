//! A back-off trigram: drafts from counts alone, without a model.

use std::collections::HashMap;

use crate::loss::Prediction;
use crate::transcripts::Transcript;

/// Counts of the tokens that followed a context.
type Followers = HashMap<u32, i64>;

/// Counts of the tokens of responses after the two tokens before, after the one token before, and of all tokens.
#[derive(Clone, Debug, Default)]
pub struct BackOff {
    after_two: HashMap<(u32, u32), Followers>,
    after_one: HashMap<u32, Followers>,
    all: Followers,
}

impl BackOff {
    /// Adds the tokens of a response to the counts, or takes them away.
    pub fn count(&mut self, transcript: &Transcript, adds: bool) {
        let (tokens, by) = (transcript.tokens(), if adds { 1 } else { -1 });
        for position in transcript.prompt.len()..tokens.len() {
            let token = tokens[position];
            *self.all.entry(token).or_default() += by;
            let Some(&before) = position.checked_sub(1).and_then(|p| tokens.get(p)) else { continue };
            *self.after_one.entry(before).or_default().entry(token).or_default() += by;
            let Some(&first) = position.checked_sub(2).and_then(|p| tokens.get(p)) else { continue };
            *self.after_two.entry((first, before)).or_default().entry(token).or_default() += by;
        }
    }

    /// Returns the token that most often followed two tokens; if these two were never followed by a token, the token that
    /// most often followed the second, and else the most frequent token. Ties go to the lowest id.
    pub fn next(&self, first: u32, before: u32) -> Option<u32> {
        let likeliest = |followers: &Followers| {
            let counted = followers.iter().filter(|&(_, &count)| count > 0);
            counted.max_by_key(|&(&token, &count)| (count, std::cmp::Reverse(token))).map(|(&token, _)| token)
        };
        let two = self.after_two.get(&(first, before)).and_then(likeliest);
        two.or_else(|| self.after_one.get(&before).and_then(likeliest)).or_else(|| likeliest(&self.all))
    }

    /// Drafts `slots` tokens after the two tokens, each after the drafts before it, with confidence 1.
    pub fn draft(&self, mut first: u32, mut before: u32, slots: usize) -> Vec<Prediction> {
        let mut drafts = Vec::with_capacity(slots);
        for _ in 0..slots {
            // Without counts, a draft that no token equals.
            let token = self.next(first, before).unwrap_or(u32::MAX);
            drafts.push(Prediction { loss: 0.0, token, confidence: 1.0 });
            (first, before) = (before, token);
        }
        drafts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_known_context_decides() {
        let transcript = Transcript { prompt: vec![1, 2], response: vec![3, 2, 3, 2, 4, 3, 2, 4] };
        let mut counts = BackOff::default();
        assert_eq!(counts.next(1, 2), None);
        counts.count(&transcript, true);
        // 3 followed (1, 2); 4 followed (3, 2) twice and 3 once.
        assert_eq!((counts.next(1, 2), counts.next(3, 2)), (Some(3), Some(4)));
        // After 2 alone: 3 twice and 4 twice.
        assert_eq!(counts.next(9, 2), Some(3));
        // The most frequent token: 2 and 3 are there three times.
        assert_eq!(counts.next(9, 9), Some(2));
        let tokens: Vec<u32> = counts.draft(1, 2, 3).iter().map(|draft| draft.token).collect();
        assert_eq!(tokens, [3, 2, 4]);
        counts.count(&transcript, false);
        assert_eq!(counts.next(1, 2), None);
    }
}
