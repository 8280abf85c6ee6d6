//! Transcripts whose responses are the words of a text, to measure what a drafter learns from text that its target did
//! not write.

use super::output::Output;
use super::windows::Windows;
use crate::error::{Result, TuneError};
use crate::transcripts::Transcript;

/// Cuts each of the first `count` windows of a text into a response (its last `response` tokens) and a prompt (the
/// tokens before). Returns the number of windows.
///
/// # Errors
/// [`TuneError::Setting`] for a response that leaves no prompt; [`TuneError::Io`].
pub fn as_written(windows: &Windows, response: usize, count: usize, output: &mut Output) -> Result<usize> {
    if !(1..windows.longest()).contains(&response) {
        let expected = format!("1 to {}", windows.longest() - 1);
        return Err(TuneError::setting("the response", response, expected));
    }
    let mut attempts = 0;
    for mut prompt in windows.iter().take(count) {
        attempts += 1;
        let response = prompt.split_off(prompt.len() - response);
        // Two windows may have the same prompt; only the first one becomes a transcript.
        if !output.has(&prompt) {
            output.add(Transcript { prompt, response }, attempts == 1)?;
        }
    }
    Ok(attempts)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::settings::example;
    use super::*;
    use crate::transcripts;

    #[test]
    fn prompts_and_responses_are_the_text() {
        let folder = tempfile::tempdir().unwrap();
        let tokens = (0..40).collect();
        let windows = Windows::new(Path::new("t"), (vec![63], tokens), 7, 10, 0).unwrap();
        let mut output = Output::open(folder.path(), example()).unwrap();
        assert_eq!(as_written(&windows, 3, 10, &mut output).unwrap(), 10);
        let summary = output.finish(10).unwrap();
        assert_eq!((summary.train + summary.held_out, summary.response_tokens), (10, 30));
        let read = |name: &str| transcripts::read(&folder.path().join(name), 64).unwrap();
        for transcript in [read("train.jsonl"), read("heldout.jsonl")].concat() {
            let first = transcript.prompt[1];
            assert_eq!(transcript.prompt, [63, first, first + 1, first + 2, first + 3]);
            assert_eq!(transcript.response, [first + 4, first + 5, first + 6]);
        }
    }

    #[test]
    fn a_response_that_is_everything_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let windows = Windows::new(Path::new("t"), (vec![], vec![1; 9]), 4, 1, 0).unwrap();
        let mut output = Output::open(folder.path(), example()).unwrap();
        for response in [0, 4] {
            let error = as_written(&windows, response, 1, &mut output).unwrap_err();
            assert!(matches!(error, TuneError::Setting { .. }), "{error}");
        }
    }
}
