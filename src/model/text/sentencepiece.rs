//! SentencePiece's BPE from a vocabulary with scores, as GGUF files of Llama 2 store it.
//!
//! The file has no merges: two neighbouring tokens merge if together they are a token, the pair with the best score
//! first. Like transformers, this module lists all pairs in the order of their scores.

use std::cmp::Reverse;

use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::sequence::Sequence as Decoders;
use tokenizers::decoders::strip::Strip;
use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::normalizers::prepend::Prepend;
use tokenizers::normalizers::replace::Replace;
use tokenizers::normalizers::{NormalizerWrapper, Sequence as Normalizers};

/// The character that stands for a space in a token.
const SPACE: &str = "▁";

/// The longest token that is split into pairs, in bytes. SentencePiece's own limit is 16 characters.
const MAX_MERGED: usize = 256;

/// Returns a SentencePiece tokenizer without its added tokens. `texts` are the tokens that merges can make,
/// each with its score; `unknown` is the token for what no token covers.
pub(super) fn tokenizer(
    vocab: Vocab,
    texts: &[(&str, f32)],
    unknown: Option<String>,
    add_space_prefix: bool,
) -> tokenizers::Result<tokenizers::Tokenizer> {
    let merges = merges(&vocab, texts);
    let mut bpe = BPE::builder().vocab_and_merges(vocab, merges).byte_fallback(true).fuse_unk(true);
    if let Some(unknown) = unknown {
        bpe = bpe.unk_token(unknown);
    }
    let mut tokenizer = tokenizers::Tokenizer::new(bpe.build()?);
    let spaces: NormalizerWrapper = Replace::new(" ", SPACE)?.into();
    let normalizers = match add_space_prefix {
        true => vec![Prepend::new(SPACE.to_owned()).into(), spaces],
        false => vec![spaces],
    };
    tokenizer.with_normalizer(Some(Normalizers::new(normalizers)))?;
    let mut decoders = vec![Replace::new(SPACE, " ")?.into(), ByteFallback::new().into(), Fuse::new().into()];
    if add_space_prefix {
        decoders.push(Strip::new(' ', 1, 0).into());
    }
    tokenizer.with_decoder(Some(Decoders::new(decoders)));
    Ok(tokenizer)
}

/// Returns all pairs of tokens that make a token, the pair of the best score first.
fn merges(vocab: &Vocab, texts: &[(&str, f32)]) -> Merges {
    let mut pairs = Vec::new();
    for &(text, score) in texts.iter().filter(|(text, _)| text.len() <= MAX_MERGED) {
        for (at, _) in text.char_indices().skip(1) {
            let (left, right) = text.split_at(at);
            if let (Some(left_id), Some(right_id)) = (vocab.get(left), vocab.get(right)) {
                pairs.push((score, left, right, *left_id, *right_id));
            }
        }
    }
    pairs.sort_by(|(a, left_a, right_a, ids_a, idr_a), (b, left_b, right_b, ids_b, idr_b)| {
        let lengths = |left: &str, right: &str| Reverse((left.chars().count(), right.chars().count()));
        b.total_cmp(a)
            .then_with(|| lengths(left_a, right_a).cmp(&lengths(left_b, right_b)))
            .then_with(|| (ids_a, idr_a).cmp(&(ids_b, idr_b)))
    });
    pairs.into_iter().map(|(_, left, right, ..)| (left.to_owned(), right.to_owned())).collect()
}
