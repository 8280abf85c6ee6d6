//! The tokens at which a GGUF model stops: the end keys of its metadata, and control tokens that are known by
//! their text. Both lists are llama.cpp's (`llama-vocab.cpp`).

use crate::model::LoadError;
use crate::model::format::gguf::Header;

const TOKENS: &str = "tokenizer.ggml.tokens";

/// Metadata keys that hold the id of a token that ends a text or a turn, each with the texts by which the token
/// is found in a file without the key. A token whose text is in [`END_TEXTS`] is found without the key too.
const END_KEYS: [(&str, &[&str]); 6] = [
    ("tokenizer.ggml.eos_token_id", &[]),
    ("tokenizer.ggml.eot_token_id", &[]),
    ("tokenizer.ggml.eom_token_id", &[]),
    ("tokenizer.ggml.fim_pad_token_id", &["<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"]),
    (
        "tokenizer.ggml.fim_rep_token_id",
        &["<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"],
    ),
    ("tokenizer.ggml.fim_sep_token_id", &["<|file_sep|>"]),
];

/// Texts of tokens that end a turn wherever they occur in a vocabulary.
const END_TEXTS: [&str; 22] = [
    "<|eot_id|>",
    "<|im_end|>",
    END,
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    END_OF_SENTENCE,
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
];

const END: &str = "<|end|>";
const END_OF_SENTENCE: &str = "</s>";

/// Returns the token ids at which a model stops: first the ids that metadata keys hold, then the ids of tokens
/// whose text ends a turn.
pub(in crate::model) fn end_ids(header: &Header) -> Result<Vec<u32>, LoadError> {
    let fields = header.fields();
    // A token list of another type counts as empty here: the tokenizer reports it, and a model can run without
    // a tokenizer.
    let tokens = header.strings(TOKENS).ok().flatten().unwrap_or_default();
    let mut ids = Vec::new();
    let mut add = |id: u32| {
        if !ids.contains(&id) {
            ids.push(id);
        }
    };
    for (key, texts) in END_KEYS {
        let named = fields.token_id(key)?;
        let known = || tokens.iter().position(|token| texts.contains(token));
        if let Some(id) = named.or_else(|| known().and_then(|id| u32::try_from(id).ok())) {
            add(id);
        }
    }
    (0u32..).zip(ends_by_text(&tokens)).filter(|(_, ends)| *ends).for_each(|(id, _)| add(id));
    Ok(ids)
}

/// Returns, for each token of a vocabulary, whether its text makes it the end of a turn.
pub(in crate::model) fn ends_by_text<'a>(tokens: &'a [&'a str]) -> impl Iterator<Item = bool> + use<'a> {
    let has = |text: &str| tokens.contains(&text);
    // `<|end|>` only ends a message within a turn if the vocabulary has other tokens for the end of a turn, and
    // `</s>` is ordinary text in a vocabulary with `<|tool_response>`.
    let messages_end = (has("<|return|>") || has("<|flush|>")) && (has("<|call|>") || has("<|calls|>"));
    let plain_markup = has("<|tool_response>");
    tokens.iter().map(move |token| {
        END_TEXTS.contains(token)
            && !(messages_end && *token == END)
            && !(plain_markup && *token == END_OF_SENTENCE)
    })
}

#[cfg(test)]
mod tests {
    use super::ends_by_text;

    #[test]
    fn ends_that_other_tokens_rule_out() {
        let ends = |tokens: &[&str]| ends_by_text(tokens).collect::<Vec<_>>();
        assert_eq!(ends(&["a", "<|end|>", "</s>", "<|im_end|>"]), [false, true, true, true]);
        assert_eq!(ends(&["<|return|>", "<|end|>", "<|call|>"]), [true, false, true]);
        assert_eq!(ends(&["<|return|>", "<|end|>"]), [true, true]);
        assert_eq!(ends(&["<|flush|>", "<|end|>", "<|calls|>"]), [true, false, true]);
        assert_eq!(ends(&["</s>", "<|tool_response>"]), [false, true]);
    }
}
