//! Reads the tokenizer and the chat template from the metadata of a GGUF file.

use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::normalizers::NFC;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::processors::template::{SpecialToken, TemplateProcessing};
use tokenizers::{AddedToken, SplitDelimiterBehavior};

use super::chat::ChatTemplate;
use super::guarded::guarded;
use super::sentencepiece;
use super::tokenizer::Tokenizer;
use crate::model::LoadError;
use crate::model::config::end_of_turn::ends_by_text;
use crate::model::config::gguf::vocab_size;
use crate::model::format::gguf::{Gguf, Header};
use crate::model::format::json::Fields;
use crate::model::load_error::shorten;

const MODEL: &str = "tokenizer.ggml.model";
const PRE: &str = "tokenizer.ggml.pre";
const TOKENS: &str = "tokenizer.ggml.tokens";
const TOKEN_TYPES: &str = "tokenizer.ggml.token_type";
const SCORES: &str = "tokenizer.ggml.scores";
const MERGES: &str = "tokenizer.ggml.merges";
/// The accepted names of rules that split a text into pieces, for error messages.
const SUPPORTED_PRE: &str = "smollm, gpt-2, llama-bpe, qwen2, and llama.cpp's other names for these";

const CHAT_TEMPLATE: &str = "tokenizer.chat_template";

/// The rule that splits a text into pieces, within which byte pairs are merged, as the key `tokenizer.ggml.pre`
/// names it. Each variant is the pre-tokenizer of the `tokenizer.json` that such a file was converted from.
/// Names that stand for the same pre-tokenizer in llama.cpp share a variant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Splitting {
    /// The pieces of GPT-2: words, numbers and punctuation, each with the space before it.
    Gpt2,
    /// The pieces of SmolLM: every digit by itself, the rest like GPT-2.
    SmolLm,
    /// The pieces of Llama 3: numbers in groups of up to three digits.
    LlamaBpe,
    /// The pieces of Qwen2 and Qwen3: every digit by itself; the text is first normalised to NFC.
    Qwen2,
}

/// A regular expression for contractions, words, numbers, punctuation, line breaks and spaces; `{number}` is the
/// pattern of one number.
macro_rules! split_pattern {
    ($number:literal) => {
        concat!(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|",
            $number,
            r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        )
    };
}

impl Splitting {
    fn read(fields: &Fields<'_>) -> Result<Self, LoadError> {
        match fields.text(PRE)?.ok_or_else(|| fields.missing(PRE))? {
            "gpt-2" | "phi-2" | "jina-es" | "jina-de" | "gigachat" | "jina-v2-es" | "jina-v2-de"
            | "a.x-4.0" | "mellum" | "modern-bert" | "exaone4" => Ok(Self::Gpt2),
            "smollm" | "starcoder" | "refact" => Ok(Self::SmolLm),
            "llama-bpe" | "llama3" | "llama-v3" | "falcon3" | "falcon-h1" | "pixtral" | "midm-2.0"
            | "lfm2" | "jina-v5-nano" => Ok(Self::LlamaBpe),
            "qwen2" | "deepseek-r1-qwen" | "kormo" | "f2llmv2" | "megrez" => Ok(Self::Qwen2),
            _ => Err(fields.unsupported(PRE, SUPPORTED_PRE)),
        }
    }

    fn pre_tokenizer(self) -> tokenizers::Result<PreTokenizerWrapper> {
        let words = ByteLevel::new(false, true, true);
        let bytes = ByteLevel::new(false, true, false);
        let split = |pattern: &str| {
            let pattern = SplitPattern::Regex(pattern.to_owned());
            let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false)?;
            Ok::<_, tokenizers::Error>(Sequence::new(vec![split.into(), bytes.into()]).into())
        };
        match self {
            Self::Gpt2 => Ok(words.into()),
            Self::SmolLm => Ok(Sequence::new(vec![Digits::new(true).into(), words.into()]).into()),
            Self::LlamaBpe => split(split_pattern!(r"\p{N}{1,3}")),
            Self::Qwen2 => split(split_pattern!(r"\p{N}")),
        }
    }
}

/// Types of tokens; `tokenizer.ggml.token_type` stores them as numbers.
#[derive(Clone, Copy, PartialEq, Eq)]
enum TokenType {
    /// An ordinary token, which merging makes from a text.
    Text,
    /// The token for text that no other token covers.
    Unknown,
    /// A token for one byte.
    Byte,
    /// A control token, which is never text: the end of a message, or a role.
    Control,
    /// A token for text that is never split, such as `<tool_call>`.
    UserDefined,
    /// A token that never occurs, which stands for a row that pads the embedding.
    Unused,
}

impl TokenType {
    fn from_number(number: i32) -> Option<Self> {
        match number {
            1 => Some(Self::Text),
            2 => Some(Self::Unknown),
            6 => Some(Self::Byte),
            3 => Some(Self::Control),
            4 => Some(Self::UserDefined),
            5 => Some(Self::Unused),
            _ => None,
        }
    }
}

impl Gguf {
    /// Returns the tokenizer that the metadata describe.
    ///
    /// # Errors
    /// [`LoadError`] naming the key that is missing or not supported; [`LoadError::Tokenizer`] if the tokens
    /// and merges do not make a tokenizer.
    pub fn tokenizer(&self) -> Result<Tokenizer, LoadError> {
        tokenizer(self.header(), vocab_size(self.header())?)
    }

    /// Returns the chat template in the metadata.
    ///
    /// # Errors
    /// [`LoadError::NoChatTemplate`], or [`LoadError::ChatTemplate`] if it cannot be parsed.
    pub fn chat_template(&self) -> Result<ChatTemplate, LoadError> {
        chat_template(self.header())
    }
}

/// Reads the tokenizer from the metadata, for a model with `vocab_size` ids.
pub(in crate::model) fn tokenizer(header: &Header, vocab_size: usize) -> Result<Tokenizer, LoadError> {
    let fields = header.fields();
    match fields.text(MODEL)?.ok_or_else(|| fields.missing(MODEL))? {
        "gpt2" => byte_level(header, vocab_size),
        "llama" => sentencepiece(header, vocab_size),
        _ => Err(fields.unsupported(MODEL, "gpt2 (byte-level BPE), llama (SentencePiece)")),
    }
}

/// Reads a SentencePiece tokenizer, whose tokens have scores instead of merges.
fn sentencepiece(header: &Header, vocab_size: usize) -> Result<Tokenizer, LoadError> {
    let fields = header.fields();
    let tokens = header.strings(TOKENS)?.ok_or_else(|| fields.missing(TOKENS))?;
    let types = token_types(header, &tokens)?;
    let scores = header.floats(SCORES)?.ok_or_else(|| fields.missing(SCORES))?;
    if scores.len() != tokens.len() {
        return Err(fields.invalid(SCORES, format!("one number per token, {} in total", tokens.len())));
    }
    let vocab = vocabulary(header, &tokens, &types)?;
    let merged = |token_type: &TokenType| matches!(token_type, TokenType::Text | TokenType::UserDefined);
    let typed = tokens.iter().zip(&types).zip(&scores);
    let texts: Vec<(&str, f32)> =
        typed.filter(|((_, kind), _)| merged(kind)).map(|((token, _), score)| (*token, *score)).collect();
    let unknown = tokens.iter().zip(&types).find(|(_, found)| **found == TokenType::Unknown);
    let unknown = unknown.map(|(token, _)| (*token).to_owned());
    let add_space_prefix = fields.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let template = surrounding_tokens(&fields, true, &tokens)?;
    let path = header.path();
    let inner = guarded(path, || {
        let mut tokenizer = sentencepiece::tokenizer(vocab, &texts, unknown, add_space_prefix)?;
        finish(&mut tokenizer, template, &tokens, &types)?;
        Ok(tokenizer)
    })?;
    Ok(Tokenizer::new(path.into(), inner, vocab_size))
}

/// Reads a byte-level BPE tokenizer, which lists the pairs of tokens to merge.
fn byte_level(header: &Header, vocab_size: usize) -> Result<Tokenizer, LoadError> {
    let fields = header.fields();
    let splitting = Splitting::read(&fields)?;
    let tokens = header.strings(TOKENS)?.ok_or_else(|| fields.missing(TOKENS))?;
    let types = token_types(header, &tokens)?;
    let vocab = vocabulary(header, &tokens, &types)?;
    let merges = merges(header, &vocab)?;
    // Llama 3 begins every text with BOS, even if the file does not say so.
    let template = surrounding_tokens(&fields, splitting == Splitting::LlamaBpe, &tokens)?;

    let path = header.path();
    let inner = guarded(path, || {
        let bpe =
            BPE::builder().vocab_and_merges(vocab, merges).ignore_merges(splitting == Splitting::LlamaBpe);
        let mut tokenizer = tokenizers::Tokenizer::new(bpe.build()?);
        if splitting == Splitting::Qwen2 {
            tokenizer.with_normalizer(Some(NFC))?;
        }
        tokenizer.with_pre_tokenizer(Some(splitting.pre_tokenizer()?));
        tokenizer.with_decoder(Some(ByteLevel::new(false, true, true)));
        finish(&mut tokenizer, template, &tokens, &types)?;
        Ok(tokenizer)
    })?;
    Ok(Tokenizer::new(path.into(), inner, vocab_size))
}

/// Adds to a tokenizer the tokens that it puts around a text, the control tokens and the user-defined tokens.
fn finish(
    tokenizer: &mut tokenizers::Tokenizer,
    template: Option<Surrounding>,
    tokens: &[&str],
    types: &[TokenType],
) -> tokenizers::Result<()> {
    if let Some((single, special_tokens)) = template {
        let processing = TemplateProcessing::builder()
            .try_single(single)
            .map_err(|error| error.to_string())?
            .special_tokens(special_tokens)
            .build()?;
        tokenizer.with_post_processor(Some(processing));
    }
    let added = |special: bool| {
        let wanted = move |found: &TokenType| match found {
            TokenType::Control | TokenType::Unknown => special,
            TokenType::UserDefined => !special,
            TokenType::Text | TokenType::Byte | TokenType::Unused => false,
        };
        let tokens = tokens.iter().zip(types).filter(move |(_, found)| wanted(found));
        tokens.map(move |(token, _)| AddedToken::from(*token, special).normalized(false)).collect::<Vec<_>>()
    };
    tokenizer.add_special_tokens(added(true))?;
    tokenizer.add_tokens(added(false))?;
    Ok(())
}

/// Reads the type of each token; without types, all tokens are text. A token whose text ends a turn is a
/// control token, whatever its type.
fn token_types(header: &Header, tokens: &[&str]) -> Result<Vec<TokenType>, LoadError> {
    let fields = header.fields();
    let mut types = match header.integers(TOKEN_TYPES)? {
        None => vec![TokenType::Text; tokens.len()],
        Some(numbers) if numbers.len() != tokens.len() => {
            return Err(
                fields.invalid(TOKEN_TYPES, format!("one number per token, {} in total", tokens.len()))
            );
        }
        Some(numbers) => {
            let types: Option<Vec<_>> = numbers.into_iter().map(TokenType::from_number).collect();
            types.ok_or_else(|| fields.invalid(TOKEN_TYPES, "numbers from 1 to 6"))?
        }
    };
    let ends = types.iter_mut().zip(ends_by_text(tokens)).filter(|(_, ends)| *ends);
    ends.for_each(|(token_type, _)| *token_type = TokenType::Control);
    Ok(types)
}

fn vocabulary(header: &Header, tokens: &[&str], types: &[TokenType]) -> Result<Vocab, LoadError> {
    let wrong = |reason: String| LoadError::Tokenizer { path: header.path().into(), reason };
    let mut vocab = Vocab::with_capacity(tokens.len());
    for ((id, &token), token_type) in (0u32..).zip(tokens).zip(types) {
        if *token_type == TokenType::Unused {
            continue;
        }
        if let Some(other) = vocab.insert(token.to_owned(), id) {
            return Err(wrong(format!(
                "ids {other} and {id} have the same token `{}`, expected different tokens",
                shorten(token)
            )));
        }
    }
    Ok(vocab)
}

/// Reads the pairs of tokens that the tokenizer merges, in order of priority. Each pair is two tokens with a
/// space between them.
fn merges(header: &Header, vocab: &Vocab) -> Result<Merges, LoadError> {
    let merges = header.strings(MERGES)?.ok_or_else(|| header.fields().missing(MERGES))?;
    let wrong = |merge: &str, what: String| LoadError::Tokenizer {
        path: header.path().into(),
        reason: format!("merge `{}` {what}", shorten(merge)),
    };
    let mut pairs = Merges::with_capacity(merges.len());
    for merge in merges {
        let (left, right) = merge
            .split_once(' ')
            .ok_or_else(|| wrong(merge, "must be two tokens with a space between them".to_owned()))?;
        // The `tokenizers` crate panics if a merge needs a token that is missing.
        for token in [left, right, &format!("{left}{right}")] {
            if !vocab.contains_key(token) {
                return Err(wrong(merge, format!("needs the token `{}`, which is missing", shorten(token))));
            }
        }
        pairs.push((left.to_owned(), right.to_owned()));
    }
    Ok(pairs)
}

/// The tokens that a tokenizer puts around every text: a template, and the tokens that the template names.
type Surrounding = (Vec<&'static str>, Vec<SpecialToken>);

fn surrounding_tokens(
    fields: &Fields<'_>,
    adds_bos: bool,
    tokens: &[&str],
) -> Result<Option<Surrounding>, LoadError> {
    let flag = |key: &str, default: bool| Ok::<_, LoadError>(fields.flag(key)?.unwrap_or(default));
    let add_bos = flag("tokenizer.ggml.add_bos_token", adds_bos)?;
    let add_eos = flag("tokenizer.ggml.add_eos_token", false)?;
    if !add_bos && !add_eos {
        return Ok(None);
    }
    let mut special_tokens = Vec::new();
    let mut special = |name: &str, key: &str| {
        let id = fields.token_id(key)?.ok_or_else(|| fields.missing(key))?;
        let token = usize::try_from(id).ok().and_then(|id| tokens.get(id));
        let token = token.ok_or_else(|| {
            fields.invalid(key, format!("an id below {}, the number of tokens", tokens.len()))
        })?;
        let special = SpecialToken::new(name.to_owned(), vec![id], vec![(*token).to_owned()]);
        special_tokens.push(special.map_err(|error| fields.invalid(key, error.to_string()))?);
        Ok::<_, LoadError>(())
    };
    let mut single = vec!["$A"];
    if add_bos {
        special("bos", "tokenizer.ggml.bos_token_id")?;
        single.insert(0, "bos");
    }
    if add_eos {
        special("eos", "tokenizer.ggml.eos_token_id")?;
        single.push("eos");
    }
    Ok(Some((single, special_tokens)))
}

/// Reads the chat template from the metadata.
pub(in crate::model) fn chat_template(header: &Header) -> Result<ChatTemplate, LoadError> {
    let fields = header.fields();
    let source = fields.text(CHAT_TEMPLATE)?.ok_or_else(|| LoadError::NoChatTemplate {
        path: header.path().into(),
        looked_for: "no `tokenizer.chat_template` in its metadata",
    })?;
    let tokens = header.strings(TOKENS)?.unwrap_or_default();
    let mut special_tokens = Vec::new();
    for (name, key) in [
        ("bos_token", "tokenizer.ggml.bos_token_id"),
        ("eos_token", "tokenizer.ggml.eos_token_id"),
        ("unk_token", "tokenizer.ggml.unknown_token_id"),
        ("pad_token", "tokenizer.ggml.padding_token_id"),
    ] {
        let id = fields.token_id(key)?.and_then(|id| usize::try_from(id).ok());
        if let Some(token) = id.and_then(|id| tokens.get(id)) {
            special_tokens.push((name.to_owned(), minijinja::Value::from(*token)));
        }
    }
    ChatTemplate::new(header.path().into(), source, special_tokens)
}
