//! Windows of a text as prompts, for targets that have no chat template.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use flexdraft::model::Tokenizer;

use crate::error::{Result, TuneError};
use crate::hash::random_bits;

/// Purpose of the random numbers that place windows.
const PLACE: u32 = 1;

/// Bytes of text that are tokenised at once, which limits the memory of tokenising.
const CHUNK: usize = 1 << 20;

/// Windows of equal length at random places of a text; no two windows start at the same place.
#[derive(Clone, Debug)]
pub struct Windows {
    /// Token ids before every window: the tokens that the tokenizer puts at the start of a text.
    beginning: Vec<u32>,
    tokens: Vec<u32>,
    len: usize,
    seed: u64,
}

impl Windows {
    /// Returns windows of `len` tokens of a tokenised text, at places that `seed` determines.
    ///
    /// # Errors
    /// [`TuneError::Setting`] for a length of 0; [`TuneError::TooLittleData`] for a text, read from `path`,
    /// that has fewer than `count` windows.
    pub fn new(
        path: &Path,
        (beginning, tokens): (Vec<u32>, Vec<u32>),
        len: usize,
        count: usize,
        seed: u64,
    ) -> Result<Self> {
        if len == 0 {
            return Err(TuneError::setting("window", len, "at least 1 token"));
        }
        let needed = len.saturating_add(count.max(1) - 1);
        if tokens.len() < needed {
            return Err(TuneError::TooLittleData {
                path: path.into(),
                found: tokens.len(),
                unit: "tokens",
                needed,
            });
        }
        Ok(Self { beginning, tokens, len, seed })
    }

    /// Returns the number of tokens of a prompt.
    pub fn longest(&self) -> usize {
        self.beginning.len() + self.len
    }

    /// Returns the prompts, in random order.
    pub fn iter(&self) -> impl Iterator<Item = Vec<u32>> + '_ {
        let places = self.tokens.len() + 1 - self.len;
        // A Fisher-Yates shuffle that stores only the elements that it has moved.
        let mut moved = HashMap::new();
        (0..places).map(move |index| {
            let left = (places - index) as u128;
            let draw = u128::from(random_bits(self.seed, PLACE, index as u64));
            let other = index + ((draw * left) >> 64) as usize;
            let here = moved.remove(&index).unwrap_or(index);
            let start = if other == index { here } else { moved.insert(other, here).unwrap_or(other) };
            [&self.beginning, &self.tokens[start..start + self.len]].concat()
        })
    }
}

/// Reads a text file as token ids. Also returns the tokens that the tokenizer puts at the start of a text.
///
/// # Errors
/// [`TuneError::Io`] for a file that cannot be read or is not UTF-8; [`TuneError::Runner`] from the tokenizer.
pub fn read_text(path: &Path, tokenizer: &Tokenizer) -> Result<(Vec<u32>, Vec<u32>)> {
    let text = fs::read_to_string(path).map_err(TuneError::io("read", path))?;
    let mut tokens = Vec::new();
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (chunk, after) = rest.split_at(chunk_end(rest));
        tokens.extend(tokenizer.encode(chunk, false)?);
        rest = after;
    }
    Ok((tokenizer.encode("", true)?, tokens))
}

/// Returns the end of the first chunk of a text, at a line break if possible. No tokenizer joins the text of two lines.
fn chunk_end(text: &str) -> usize {
    if text.len() <= CHUNK {
        return text.len();
    }
    let newline = text.as_bytes()[..CHUNK].iter().rposition(|&byte| byte == b'\n');
    let between_characters = || (CHUNK..text.len()).find(|&end| text.is_char_boundary(end));
    newline.map(|newline| newline + 1).or_else(between_characters).unwrap_or(text.len())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn windows(tokens: u32, len: usize, seed: u64) -> Windows {
        Windows::new(Path::new("t"), (vec![7], (100..100 + tokens).collect()), len, 1, seed).unwrap()
    }

    #[test]
    fn every_place_once() {
        let windows = windows(100, 3, 5);
        let starts: Vec<u32> = windows.iter().map(|prompt| prompt[1]).collect();
        assert_eq!(starts.iter().collect::<BTreeSet<_>>().len(), 98);
        assert_eq!(starts.len(), 98);
        assert!(!starts.is_sorted());
        assert!(windows.iter().all(|prompt| prompt == [7, prompt[1], prompt[1] + 1, prompt[1] + 2]));
        assert_eq!(windows.longest(), 4);
    }

    #[test]
    fn places_depend_on_the_seed_alone() {
        let first = |seed| windows(1000, 2, seed).iter().take(5).collect::<Vec<_>>();
        assert_eq!(first(1), first(1));
        assert_ne!(first(1), first(2));
    }

    #[test]
    fn too_little_text() {
        let new = |tokens, len, count| Windows::new(Path::new("t"), (vec![], vec![0; tokens]), len, count, 0);
        assert!(new(10, 8, 3).is_ok());
        assert!(matches!(new(10, 8, 4), Err(TuneError::TooLittleData { found: 10, needed: 11, .. })));
        assert!(matches!(new(0, 1, 0), Err(TuneError::TooLittleData { needed: 1, .. })));
        assert!(matches!(new(10, 0, 1), Err(TuneError::Setting { .. })));
    }

    #[test]
    fn long_texts_are_cut_between_lines() {
        let text = "é\n".repeat(CHUNK);
        let end = chunk_end(&text);
        assert!(end <= CHUNK && text[..end].ends_with('\n'));
        let one_line = "é".repeat(CHUNK);
        assert!(one_line.is_char_boundary(chunk_end(&one_line)));
        assert_eq!(chunk_end("abc"), 3);
    }
}
