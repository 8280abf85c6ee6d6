//! Transcripts: prompts and the target's responses, as token ids.
//!
//! A file of transcripts is JSON lines, one transcript per line, so a writer that is killed loses at most the line
//! that it was writing.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Result, TuneError};
use crate::json_lines::is_whole_object;

/// A prompt and the target's response.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Transcript {
    /// Token ids of the prompt, including the chat template's; at least one.
    pub prompt: Vec<u32>,
    /// Token ids that the target wrote after the prompt.
    pub response: Vec<u32>,
}

impl Transcript {
    /// Returns the tokens of the prompt, followed by the tokens of the response.
    pub fn tokens(&self) -> Vec<u32> {
        [&self.prompt[..], &self.response].concat()
    }

    /// Returns the number of tokens of prompt and response together.
    pub fn len(&self) -> usize {
        self.prompt.len() + self.response.len()
    }

    /// Returns whether prompt and response have no tokens.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Reads a file of transcripts, whose ids must be below `vocab_size`. An unfinished last line is left out; a
/// transcript that only lacks its line break is not.
///
/// # Errors
/// [`TuneError::Io`], or [`TuneError::File`] naming the first line that is not a transcript for this vocabulary.
pub fn read(path: &Path, vocab_size: usize) -> Result<Vec<Transcript>> {
    let file = File::open(path).map_err(TuneError::io("read", path))?;
    let mut reader = BufReader::new(file);
    let mut transcripts = Vec::new();
    let mut line = String::new();
    for number in 1.. {
        line.clear();
        let bytes = reader.read_line(&mut line).map_err(TuneError::io("read", path))?;
        if bytes == 0 || !(line.ends_with('\n') || is_whole_object(line.as_bytes())) {
            break;
        }
        let wrong = |reason: String| TuneError::File {
            path: path.into(),
            reason: format!("line {number}: {reason}"),
        };
        let transcript: Transcript = serde_json::from_str(&line).map_err(|error| wrong(error.to_string()))?;
        if transcript.prompt.is_empty() {
            return Err(wrong("the prompt is empty, expected at least one token id".into()));
        }
        let ids = transcript.prompt.iter().chain(&transcript.response);
        if let Some(id) = ids.copied().find(|&id| id as usize >= vocab_size) {
            return Err(wrong(format!(
                "token id {id}, expected ids below {vocab_size}, the target's vocabulary"
            )));
        }
        transcripts.push(transcript);
    }
    Ok(transcripts)
}
