//! Transcripts to train on: prompts and the target's own responses to them.
//!
//! A drafter learns from text that its target would write. The decode engine therefore makes the transcripts, many at
//! a time, from one of three kinds of [`Prompts`]: a file of prompts, windows of a text, or messages that the target
//! writes itself (Magpie, [arXiv 2406.08464](https://arxiv.org/abs/2406.08464)).
//!
//! Every transcript is a function of the [`Settings`] and its place in the order of attempts. The transcripts are
//! therefore the same whether or not a run is killed and resumed, and for every batch size.

mod as_written;
mod generate;
mod order;
mod output;
mod prompt_file;
mod prompts;
mod rendering;
mod self_prompt;
mod settings;
mod windows;

pub use as_written::as_written;
pub use generate::{Generation, Progress, generate};
pub use output::Output;
pub use prompt_file::{PromptFormat, read_prompts};
pub use prompts::Prompts;
pub use rendering::Rendering;
pub use self_prompt::SelfPrompt;
pub use settings::{DataFile, Settings, Source, Summary, TargetName};
pub use windows::{Windows, read_text};
