//! Stop strings: find the strings that end an output in a text that arrives in pieces.

use std::sync::Arc;

use crate::model::LoadError;

/// A set of strings that end an output.
///
/// The text ends before the stop string that is complete first. If several are complete at the same character, the text
/// ends before the longest of them. The result therefore does not depend on the pieces in which the text arrives.
#[derive(Clone, Debug, Default)]
pub struct StopStrings(Arc<[Pattern]>);

impl StopStrings {
    /// Makes a set of stop strings.
    ///
    /// # Errors
    /// [`LoadError::EmptyStopString`] for a string without characters, which every text contains.
    pub fn new<S: Into<String>>(strings: impl IntoIterator<Item = S>) -> Result<Self, LoadError> {
        let pattern = |text: S| match text.into() {
            text if text.is_empty() => Err(LoadError::EmptyStopString),
            text => Ok(Pattern::new(text)),
        };
        strings.into_iter().map(pattern).collect::<Result<_, _>>().map(Self)
    }

    /// Returns whether the set has no strings.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns whether one of the strings is exactly `text`.
    pub(super) fn contains(&self, text: &str) -> bool {
        self.0.iter().any(|pattern| pattern.text == text)
    }
}

/// A stop string and its failure function (Knuth, Morris and Pratt).
#[derive(Debug)]
struct Pattern {
    text: String,
    /// `shorter[n]` is the length of the longest proper suffix of the first `n` bytes that is also a prefix of the string.
    shorter: Vec<usize>,
}

impl Pattern {
    fn new(text: String) -> Self {
        let mut pattern = Self { shorter: vec![0, 0], text };
        let mut matched = 0;
        for &byte in &pattern.text.as_bytes()[1..] {
            matched = pattern.after(matched, byte);
            pattern.shorter.push(matched);
        }
        pattern
    }

    /// Returns the number of bytes of the string that match the end of a text after one more byte, if `matched` bytes,
    /// not the whole string, matched before.
    fn after(&self, mut matched: usize, byte: u8) -> usize {
        while matched > 0 && self.text.as_bytes()[matched] != byte {
            matched = self.shorter[matched];
        }
        if self.text.as_bytes()[matched] == byte { matched + 1 } else { 0 }
    }
}

/// The search for stop strings in one text.
#[derive(Clone, Debug)]
pub(super) struct StopSearch {
    stops: StopStrings,
    /// For each stop string, the number of its first bytes that match the end of the text.
    matched: Vec<usize>,
    /// The end of the text that may be the beginning of a stop string, and was not returned.
    held: String,
    found: bool,
}

impl StopSearch {
    pub(super) fn new(stops: StopStrings) -> Self {
        let matched = vec![0; stops.0.len()];
        Self { stops, matched, held: String::new(), found: false }
    }

    /// Returns whether a stop string was found.
    pub(super) fn found(&self) -> bool {
        self.found
    }

    /// Returns whether one of the stop strings is exactly `text`.
    pub(super) fn contains(&self, text: &str) -> bool {
        self.stops.contains(text)
    }

    /// Adds a piece of text. Returns the text, including text held back earlier, up to a stop string or up to
    /// what may be the beginning of a stop string.
    pub(super) fn push(&mut self, text: &str) -> String {
        if self.found {
            return String::new();
        }
        let before = self.held.len();
        self.held.push_str(text);
        for (at, byte) in text.bytes().enumerate() {
            let mut longest = 0;
            for (pattern, matched) in self.stops.0.iter().zip(&mut self.matched) {
                *matched = pattern.after(*matched, byte);
                if *matched == pattern.text.len() {
                    longest = longest.max(*matched);
                }
            }
            if longest > 0 {
                self.found = true;
                self.held.truncate(before + at + 1 - longest);
                return std::mem::take(&mut self.held);
            }
        }
        let possible = self.matched.iter().copied().max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - possible);
        std::mem::replace(&mut self.held, rest)
    }

    /// Ends the text: returns what was held back, which is no stop string.
    pub(super) fn finish(&mut self) -> String {
        self.matched.fill(0);
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    fn search(stops: &[&str]) -> StopSearch {
        StopSearch::new(StopStrings::new(stops.iter().copied()).unwrap())
    }

    /// Returns the text before the stop string that ends first, by trying every end.
    fn cut<'a>(text: &'a str, stops: &[String]) -> (&'a str, bool) {
        let ends = text.char_indices().map(|(at, c)| at + c.len_utf8());
        for end in ends {
            let complete = stops.iter().filter(|stop| text[..end].ends_with(stop.as_str()));
            if let Some(longest) = complete.map(String::len).max() {
                return (&text[..end - longest], true);
            }
        }
        (text, false)
    }

    #[test]
    fn only_a_possible_beginning_is_held_back() {
        let mut search = search(&["\n\nUser:", "abab!"]);
        let pieces = ["hi\n", "\n", "\n", "Us", "ers ab", "ab", "ab", "!", "more"];
        let shown: Vec<String> = pieces.iter().map(|piece| search.push(piece)).collect();
        assert_eq!(shown, ["hi", "", "\n", "", "\n\nUsers ", "", "ab", "", ""]);
        assert!(search.found());
        assert_eq!(search.finish(), "");
    }

    #[test]
    fn the_string_that_is_complete_first_stops() {
        for (text, stops, kept) in [
            ("abcd", &["abcd", "bc"][..], "a"),
            ("abcd", &["bcd", "abcd"], ""),
            ("xaab", &["aab"], "x"),
            ("caf\u{e9} \u{e9}t", &["\u{e9}t"], "caf\u{e9} "),
        ] {
            let mut search = search(stops);
            assert_eq!(search.push(text), kept);
            assert!(search.found());
        }
        assert!(matches!(StopStrings::new(["a", ""]), Err(LoadError::EmptyStopString)));
    }

    proptest! {
        /// However the text is split, the result is the text before the first complete stop string. The text that is held
        /// back is the beginning of a stop string.
        #[test]
        fn pieces_do_not_matter(
            pieces in prop::collection::vec("[ab\u{e9}]{0,4}", 0..12),
            stops in prop::collection::vec("[ab\u{e9}]{1,5}", 0..4),
        ) {
            let mut search = StopSearch::new(StopStrings::new(stops.iter().cloned()).unwrap());
            let (whole, mut given, mut shown) = (pieces.concat(), 0, String::new());
            let (kept, stopped) = cut(&whole, &stops);
            for piece in &pieces {
                given += piece.len();
                shown += &search.push(piece);
                prop_assert!(kept.starts_with(&shown));
                let held = &whole[shown.len()..given];
                let begins = |stop: &String| stop.len() > held.len() && stop.starts_with(held);
                prop_assert!(search.found() || held.is_empty() || stops.iter().any(begins), "{held:?}");
            }
            prop_assert_eq!(search.found(), stopped);
            shown += &search.finish();
            prop_assert_eq!(shown, kept);
        }
    }
}
