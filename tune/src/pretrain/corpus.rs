//! Reads text files, and encodes them as one sequence of tokens.

use std::fs;
use std::path::{Path, PathBuf};

use tokenizers::Tokenizer;

use super::bpe::END_OF_TEXT;
use super::random::SplitMix;
use crate::error::{Result, TuneError};
use crate::hash;

/// Returns the texts of a file, or of all files in a folder and its subfolders, in the order of their paths. Files
/// without text are left out.
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
            reason: format!(
                "expected UTF-8 text, found an invalid byte at {}",
                error.utf8_error().valid_up_to()
            ),
        })?;
        if !text.trim().is_empty() {
            documents.push(text);
        }
    }
    if documents.is_empty() {
        return Err(TuneError::TooLittleData {
            path: path.into(),
            found: 0,
            unit: "documents with text",
            needed: 1,
        });
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

/// The tokens of documents, one document after the other, each ended by [`END_OF_TEXT`].
#[derive(Clone, Debug)]
pub struct Tokens {
    ids: Vec<u32>,
}

impl Tokens {
    /// Encodes documents that were read from `path`.
    ///
    /// # Errors
    /// [`TuneError::File`] if the tokenizer cannot encode a document; [`TuneError::TooLittleData`] if all documents
    /// together have at most `window` tokens.
    pub fn encode(path: &Path, documents: &[String], tokenizer: &Tokenizer, window: usize) -> Result<Self> {
        let wrong = |reason: String| TuneError::File { path: path.into(), reason };
        let end = tokenizer
            .token_to_id(END_OF_TEXT)
            .ok_or_else(|| wrong(format!("the tokenizer has no token `{END_OF_TEXT}`")))?;
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

    /// Returns the number of tokens of the text.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Returns whether the text has no tokens.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Returns a hash of the tokens, which differs for other texts and tokenizers.
    pub fn fingerprint(&self) -> u64 {
        hash::of_ids(&self.ids).value()
    }

    /// Returns `count` windows of `window` tokens at random places that depend on `seed` and `step`, one after the
    /// other, and for each token the token that follows it.
    pub fn draw(&self, seed: u64, step: usize, window: usize, count: usize) -> (Vec<u32>, Vec<u32>) {
        let mut random = SplitMix::new(seed, step as u64);
        let places = (0..count).map(|_| random.below(self.ids.len() - window));
        self.at(places, window)
    }

    /// Returns all windows of `window` tokens, without overlap, and the token that follows each token.
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
