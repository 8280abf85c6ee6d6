//! Text files as tokens.

use std::fs;
use std::path::{Path, PathBuf};

use tokenizers::Tokenizer;

use super::bpe::END_OF_TEXT;
use super::random::SplitMix;
use crate::error::{Result, TuneError};
use crate::hash;

/// The texts of a file, or of all files of a folder, those of the folders in it included, in the order of their
/// paths. Files without text are left out.
///
/// # Errors
/// [`TuneError::Io`]; [`TuneError::File`] for a file that is not UTF-8; [`TuneError::TooLittleData`] if no file
/// has text.
pub fn read_documents(path: &Path) -> Result<Vec<String>> {
    let mut documents = Vec::new();
    for file in files(path)? {
        let bytes = fs::read(&file).map_err(TuneError::io("read", &file))?;
        let text = String::from_utf8(bytes).map_err(|error| TuneError::File {
            path: file.clone(),
            reason: format!("not UTF-8 from byte {} on", error.utf8_error().valid_up_to()),
        })?;
        if !text.trim().is_empty() {
            documents.push(text);
        }
    }
    if documents.is_empty() {
        return Err(TuneError::TooLittleData { path: path.into(), found: 0, unit: "documents", needed: 1 });
    }
    Ok(documents)
}

fn files(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.into()]);
    }
    let entries = fs::read_dir(path).map_err(TuneError::io("read", path))?;
    let mut paths = entries
        .map(|entry| entry.map(|entry| entry.path()).map_err(TuneError::io("read", path)))
        .collect::<Result<Vec<_>>>()?;
    paths.sort();
    let nested = paths.iter().map(|path| files(path)).collect::<Result<Vec<_>>>()?;
    Ok(nested.concat())
}

/// Documents one after the other, each ended by [`END_OF_TEXT`].
#[derive(Clone, Debug)]
pub struct Tokens {
    ids: Vec<u32>,
}

impl Tokens {
    /// Encodes documents that came from `path`.
    ///
    /// # Errors
    /// [`TuneError::File`] if the tokenizer cannot encode one of them; [`TuneError::TooLittleData`] if there
    /// are not more than `window` tokens in all.
    pub fn encode(path: &Path, documents: &[String], tokenizer: &Tokenizer, window: usize) -> Result<Self> {
        let wrong = |reason: String| TuneError::File { path: path.into(), reason };
        let end = tokenizer
            .token_to_id(END_OF_TEXT)
            .ok_or_else(|| wrong(format!("the tokenizer has no {END_OF_TEXT}")))?;
        let mut ids = Vec::new();
        for document in documents {
            let encoding = tokenizer.encode(document.as_str(), false);
            ids.extend_from_slice(encoding.map_err(|error| wrong(error.to_string()))?.get_ids());
            ids.push(end);
        }
        if ids.len() <= window {
            let (found, needed) = (ids.len(), window + 1);
            return Err(TuneError::TooLittleData { path: path.into(), found, unit: "tokens", needed });
        }
        Ok(Self { ids })
    }

    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there is no token.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// A number that other texts, or other tokenizers, hardly share.
    pub fn fingerprint(&self) -> u64 {
        hash::of_ids(&self.ids).value()
    }

    /// `count` windows of `window` tokens at places drawn for this step, one after the other, and for each
    /// token the one that follows it.
    pub fn draw(&self, seed: u64, step: usize, window: usize, count: usize) -> (Vec<u32>, Vec<u32>) {
        let mut random = SplitMix::new(seed, step as u64);
        let places = (0..count).map(|_| random.below(self.ids.len() - window));
        self.at(places, window)
    }

    /// All windows of `window` tokens that do not overlap, and what follows each token.
    pub fn all(&self, window: usize) -> (Vec<u32>, Vec<u32>) {
        let places = (0..(self.ids.len() - 1) / window).map(|i| i * window);
        self.at(places, window)
    }

    fn at(&self, places: impl Iterator<Item = usize>, window: usize) -> (Vec<u32>, Vec<u32>) {
        let (mut ids, mut next) = (Vec::new(), Vec::new());
        for place in places {
            ids.extend_from_slice(&self.ids[place..place + window]);
            next.extend_from_slice(&self.ids[place + 1..place + window + 1]);
        }
        (ids, next)
    }
}
