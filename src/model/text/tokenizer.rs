//! Tokenizers: convert text to token ids and back.

use std::path::{Path, PathBuf};

use super::guarded::guarded;
use super::special_tokens::SpecialTokens;
use crate::model::LoadError;
use crate::model::format::files::read_bytes_up_to;
use crate::model::load_error::shorten;

/// Size limit of a `tokenizer.json`, in bytes.
const SIZE_LIMIT: u64 = 512 << 20;

/// A tokenizer for a model with a given vocabulary.
pub struct Tokenizer {
    path: PathBuf,
    inner: tokenizers::Tokenizer,
    vocab_size: usize,
}

impl Tokenizer {
    /// Reads `tokenizer.json` of a directory, and the tokens that the other files of the directory add.
    pub(in crate::model) fn read_directory(dir: &Path, vocab_size: usize) -> Result<Self, LoadError> {
        let path = dir.join("tokenizer.json");
        let bytes = read_bytes_up_to(&path, SIZE_LIMIT)?;
        let mut inner = guarded(&path, || tokenizers::Tokenizer::from_bytes(&bytes))?;
        // As in transformers, the caller limits the length of a text, not the file.
        guarded(&path, || inner.with_truncation(None).map(|_| ()))?;
        inner.with_padding(None);
        SpecialTokens::read(dir)?.add_to(&mut inner, &path)?;
        Ok(Self::new(path, inner, vocab_size))
    }

    /// Wraps a tokenizer that was made from the file `path`.
    pub(in crate::model) fn new(path: PathBuf, inner: tokenizers::Tokenizer, vocab_size: usize) -> Self {
        Self { path, inner, vocab_size }
    }

    /// Returns the token ids of a text. Special tokens that the text spells out become their ids. If
    /// `add_special_tokens` is true, the tokens that the tokenizer puts around every text (BOS for most Llama models)
    /// are added.
    ///
    /// # Errors
    /// [`LoadError::TokenOutOfVocabulary`] for an id that the model does not have, or
    /// [`LoadError::Tokenizer`] if the tokenizer cannot handle the text.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, LoadError> {
        let encoding = guarded(&self.path, || self.inner.encode(text, add_special_tokens))?;
        let ids = encoding.get_ids();
        match ids.iter().find(|&&id| id as usize >= self.vocab_size) {
            None => Ok(ids.to_vec()),
            Some(&id) => Err(LoadError::TokenOutOfVocabulary {
                path: self.path.clone(),
                token: shorten(&self.token(id).unwrap_or_default()),
                id,
                vocab_size: self.vocab_size,
            }),
        }
    }

    /// Returns the text of token ids. Ids without a token give no text, and if `skip_special_tokens` is true, neither
    /// do special tokens. Bytes that are not UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// [`LoadError::Tokenizer`] for ids that the tokenizer cannot handle.
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String, LoadError> {
        guarded(&self.path, || self.inner.decode(ids, skip_special_tokens))
    }

    /// Returns the number of token ids that the tokenizer itself has, including added tokens.
    pub fn len(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// Returns whether the tokenizer has no tokens.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the vocabulary size of the model that the tokenizer was read for.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Returns the id of the token whose spelling in the vocabulary is `token`.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Returns the text of a token, as spelled in the vocabulary.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Returns whether an id is a special token, which controls the model and is not text.
    pub fn is_special(&self, id: u32) -> bool {
        let added = self.inner.get_added_vocabulary();
        self.token(id).is_some_and(|token| added.is_special_token(&token))
    }

    /// Returns the ids of all special tokens, ascending.
    pub fn special_ids(&self) -> Vec<u32> {
        let added = self.inner.get_added_vocabulary();
        let tokens = added.get_added_tokens_decoder().iter();
        let special = tokens.filter(|(_, token)| added.is_special_token(&token.content));
        let mut ids: Vec<u32> = special.map(|(&id, _)| id).collect();
        ids.sort_unstable();
        ids
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tokenizer({}: {} ids)", self.path.display(), self.len())
    }
}
