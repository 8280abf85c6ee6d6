//! Trains a byte-level BPE tokenizer on text.

use std::path::Path;

use tokenizers::decoders::byte_level::ByteLevel;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::tokenizer::SplitDelimiterBehavior;
use tokenizers::{AddedToken, Model, Tokenizer, TokenizerImpl};

use crate::error::{Result, TuneError};

/// The token that separates documents and that ends the model's output. Its id is 0.
pub const END_OF_TEXT: &str = "<|endoftext|>";

/// The pattern that splits text before merging: words with the character before them, up to three digits, runs of
/// punctuation with the line's end, runs of whitespace. It is the pattern of cl100k_base without its contractions.
const PATTERN: &str =
    r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Trains a tokenizer on `documents`, which were read from `path`. The tokenizer has `vocab_size` ids, or fewer if
/// the text has no more pairs to merge. It can encode every text.
///
/// # Errors
/// [`TuneError::File`] with the trainer's message.
pub fn train_tokenizer(path: &Path, documents: &[String], vocab_size: usize) -> Result<Tokenizer> {
    let wrong = |error: tokenizers::Error| TuneError::File { path: path.into(), reason: error.to_string() };
    let split = SplitPattern::Regex(PATTERN.into());
    let split = Split::new(split, SplitDelimiterBehavior::Isolated, false).map_err(wrong)?;
    // The byte-level step neither splits the text, which the pattern has split, nor adds a leading space, which
    // would change the text.
    let bytes = ByteLevel::new(false, true, false);
    let parts = vec![PreTokenizerWrapper::Split(split), PreTokenizerWrapper::ByteLevel(bytes)];

    let mut trainer = BpeTrainer::builder()
        .vocab_size(vocab_size)
        .min_frequency(2)
        .show_progress(false)
        .special_tokens(vec![AddedToken::from(END_OF_TEXT, true)])
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    let mut tokenizer: TokenizerImpl<BPE, tokenizers::NormalizerWrapper, Sequence, ByteLevel, ByteLevel> =
        TokenizerImpl::new(BPE::default());
    tokenizer.with_pre_tokenizer(Some(Sequence::new(parts)));
    tokenizer.with_post_processor(Some(bytes));
    tokenizer.with_decoder(Some(bytes));
    tokenizer.train(&mut trainer, documents.iter()).map_err(wrong)?;
    debug_assert!(tokenizer.get_model().get_vocab_size() <= vocab_size);
    // The tokenizer is written and read as JSON because the trained one has other component types than a
    // tokenizer from a file.
    let json = tokenizer.to_string(false).map_err(wrong)?;
    Tokenizer::from_bytes(json).map_err(wrong)
}
