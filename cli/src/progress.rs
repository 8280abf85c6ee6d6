//! A progress line on stderr until the first output appears; shown only on a terminal.

use std::cell::Cell;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use anstyle::Style;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::error::warn;

/// A progress line on stderr that is overwritten with every change.
#[derive(Debug)]
pub struct Progress {
    line: ProgressBar,
    samples: usize,
    /// Number of prompt tokens to read for all samples, and the largest number of them that one step reads.
    prompt_tokens: usize,
    prompt_rows: usize,
    read: Cell<usize>,
    tokens: Cell<usize>,
    done: Cell<usize>,
}

impl Progress {
    pub fn loading(dir: &Path) -> Self {
        let line = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        line.set_style(ProgressStyle::default_spinner());
        line.set_message(format!("loading {}", dir.display()));
        line.enable_steady_tick(Duration::from_millis(100));
        let zero = || Cell::new(0);
        Self {
            line,
            samples: 1,
            prompt_tokens: 0,
            prompt_rows: 0,
            read: zero(),
            tokens: zero(),
            done: zero(),
        }
    }

    /// Starts counting `samples` samples, for which steps read `prompt_tokens` tokens of prompts, `prompt_rows` of them per
    /// step.
    pub fn running(&mut self, samples: usize, prompt_tokens: usize, prompt_rows: usize) {
        let zero = || Cell::new(0);
        let line = self.line.clone();
        *self =
            Self { line, samples, prompt_tokens, prompt_rows, read: zero(), tokens: zero(), done: zero() };
        self.line.set_message("reading the prompt");
    }

    /// Reports that a part of the prompts was read.
    pub fn reading(&self) {
        self.read.set(self.prompt_tokens.min(self.read.get() + self.prompt_rows));
        self.line.set_message(format!(
            "reading the prompt: {} of {} tokens",
            self.read.get(),
            self.prompt_tokens
        ));
    }

    /// Reports that `tokens` tokens were committed.
    pub fn committed(&self, tokens: usize) {
        self.tokens.set(self.tokens.get() + tokens);
        self.count();
    }

    /// Reports that a sample is complete.
    pub fn finished(&self) {
        self.done.set(self.done.get() + 1);
        self.count();
    }

    fn count(&self) {
        let (tokens, done, samples) = (self.tokens.get(), self.done.get(), self.samples);
        self.line.set_message(if samples == 1 {
            format!("{tokens} tokens")
        } else {
            format!("{tokens} tokens, {done} of {samples} samples complete")
        });
    }

    /// Reports that steps are being measured before the first request.
    pub fn probing(&self) {
        self.line.set_message("measuring what steps cost on this device");
    }

    /// Reports that another mode is being run for comparison.
    pub fn comparing(&self, mode: &str) {
        self.line.set_message(format!("running `{mode}` for comparison"));
    }

    /// Writes a remark to stderr. A failure to write is ignored.
    pub fn note(&self, text: &str) {
        let dimmed = Style::new().dimmed();
        let _ = self.suspend(|| writeln!(anstream::stderr(), "{dimmed}{text}{dimmed:#}"));
    }

    /// Writes a warning to stderr. A failure to write is ignored.
    pub fn warn(&self, text: &str) {
        let _ = self.suspend(|| warn(text));
    }

    /// Removes the progress line for good.
    pub fn clear(&self) {
        self.line.finish_and_clear();
    }

    /// Hides the progress line while `write` writes to the terminal.
    pub fn suspend<T>(&self, write: impl FnOnce() -> T) -> T {
        self.line.suspend(write)
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}
