//! Reads prompts from a text file or a JSON-lines file.

use std::fs;
use std::path::Path;

use flexdraft::model::Tokenizer;
use serde::Deserialize;

use super::rendering::Rendering;
use crate::error::{Result, TuneError};

/// The conversion of the texts of a prompt file to prompts.
#[derive(Debug)]
pub enum PromptFormat<'a> {
    /// The text is a user's message, and is rendered with the target's chat template.
    Chat(Rendering<'a>),
    /// The text is used as is, with the special tokens that the tokenizer adds around a text.
    Raw,
}

#[derive(Deserialize)]
struct Line {
    prompt: String,
}

/// Reads prompts as token ids, in file order. In a `.jsonl` file, each line is an object with a `prompt`; other keys
/// are ignored. In any other file, each line that is not blank is a prompt. Every prompt must leave room for at least
/// one token in a context of `context_len`.
///
/// # Errors
/// [`TuneError::Io`]; [`TuneError::File`] naming the first line that is malformed, empty or too long;
/// [`TuneError::TooLittleData`] for a file without prompts; [`TuneError::Runner`] from tokenizer or template.
pub fn read_prompts(
    path: &Path,
    format: &PromptFormat<'_>,
    tokenizer: &Tokenizer,
    context_len: usize,
) -> Result<Vec<Vec<u32>>> {
    let text = fs::read_to_string(path).map_err(TuneError::io("read", path))?;
    let json = path.extension().is_some_and(|extension| extension == "jsonl");
    let mut prompts = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        if line.trim().is_empty() {
            continue;
        }
        let wrong = |reason: String| TuneError::File {
            path: path.into(),
            reason: format!("line {number}: {reason}"),
        };
        let text = if json {
            let line: Line = serde_json::from_str(line).map_err(|error| wrong(error.to_string()))?;
            line.prompt
        } else {
            line.to_owned()
        };
        let ids = match format {
            PromptFormat::Chat(rendering) => {
                // The rendered template already contains the special tokens, so the tokenizer adds none.
                tokenizer.encode(&rendering.user_message(&text)?, false)?
            }
            PromptFormat::Raw => tokenizer.encode(&text, true)?,
        };
        if ids.is_empty() {
            return Err(wrong("the prompt is empty".into()));
        }
        if ids.len() >= context_len {
            let tokens = ids.len();
            return Err(wrong(format!(
                "the prompt has {tokens} tokens, expected fewer than the context, {context_len}"
            )));
        }
        prompts.push(ids);
    }
    if prompts.is_empty() {
        return Err(TuneError::TooLittleData { path: path.into(), found: 0, unit: "prompts", needed: 1 });
    }
    Ok(prompts)
}

#[cfg(test)]
mod tests {
    use flexdraft::model::ChatTemplate;

    use super::*;

    fn tokenizer() -> Tokenizer {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/gguf/tokenizer-smollm.gguf");
        Tokenizer::read(&file, 1 << 20).unwrap()
    }

    fn read(name: &str, text: &str) -> Result<Vec<Vec<u32>>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        read_prompts(&path, &PromptFormat::Raw, &tokenizer(), 16)
    }

    #[test]
    fn lines_and_json_lines() {
        let tokenizer = tokenizer();
        let ids = |text| tokenizer.encode(text, true).unwrap();
        assert_eq!(read("p.txt", "one\n\n{two}\r\n").unwrap(), [ids("one"), ids("{two}")]);
        let lines = "{\"prompt\": \"a\\nb\", \"id\": 3}\n\n{\"prompt\": \"c\"}";
        assert_eq!(read("p.jsonl", lines).unwrap(), [ids("a\nb"), ids("c")]);
    }

    #[test]
    fn a_chat_prompt_goes_through_the_template() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("chat_template.jinja"), "<|im_start|>{{ messages[0].content }}!")
            .unwrap();
        let template = ChatTemplate::read(folder.path()).unwrap();
        let path = folder.path().join("p.txt");
        fs::write(&path, "who").unwrap();
        let tokenizer = tokenizer();
        let format = PromptFormat::Chat(Rendering { template: &template, thinking: None });
        let prompts = read_prompts(&path, &format, &tokenizer, 16).unwrap();
        assert_eq!(prompts, [tokenizer.encode("<|im_start|>who!", false).unwrap()]);
    }

    #[test]
    fn the_thinking_mode_is_a_variable_of_the_template() {
        let folder = tempfile::tempdir().unwrap();
        let source =
            "{% if enable_thinking is defined %}{{ enable_thinking }} {% endif %}{{ messages[0].content }}";
        fs::write(folder.path().join("chat_template.jinja"), source).unwrap();
        let template = ChatTemplate::read(folder.path()).unwrap();
        let (path, tokenizer) = (folder.path().join("p.txt"), tokenizer());
        fs::write(&path, "who").unwrap();
        for (thinking, rendered) in [(None, "who"), (Some(true), "True who"), (Some(false), "False who")] {
            let format = PromptFormat::Chat(Rendering { template: &template, thinking });
            let prompts = read_prompts(&path, &format, &tokenizer, 16).unwrap();
            assert_eq!(prompts, [tokenizer.encode(rendered, false).unwrap()]);
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let message = |name, text: &str| read(name, text).unwrap_err().to_string();
        assert!(matches!(read("p.txt", " \n\n"), Err(TuneError::TooLittleData { found: 0, .. })));
        assert!(
            message("p.jsonl", "{\"prompt\": \"a\"}\n{\"promt\": \"b\"}").contains("line 2: missing field")
        );
        assert!(message("p.jsonl", "{\"prompt\": ").contains("line 1"));
        assert!(message("p.jsonl", "{\"prompt\": \"\"}").contains("line 1: the prompt is empty"));
        assert!(message("p.txt", &"word ".repeat(20)).contains("fewer than the context, 16"));
        let missing = Path::new("no/such/file.jsonl");
        let error = read_prompts(missing, &PromptFormat::Raw, &tokenizer(), 16).unwrap_err();
        assert!(matches!(error, TuneError::Io { action: "read", .. }));
    }
}
