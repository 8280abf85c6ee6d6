//! A conversation: reads the user's messages, streams the answers, and keeps the history.

use std::io::Write;

use anstyle::Style;
use flexdraft::decode::{DecodeError, Engine, Finish};
use flexdraft::device::Device;
use flexdraft::model::ChatMessage;
use flexdraft::processors::LogitProcessors;

use super::args::ChatArgs;
use super::input::{self, Input};
use super::interrupt;
use super::stats::Stats;
use crate::args::ModeChoice;
use crate::card::Card;
use crate::error::{CliError, Result};
use crate::progress::Progress;
use crate::request;
use crate::run::{self, Observer, Sample};
use crate::surface::Surface;
use crate::template::Template;
use crate::text::TextOptions;

const HELP: &str = "/reset starts a new conversation, /stats shows statistics of the answers, /quit or Ctrl-D ends. \
                    Ctrl-C stops an answer.";

/// The settings of a conversation.
pub struct Conversation<'a> {
    pub args: &'a ChatArgs,
    pub template: Template,
    pub card: Card,
    /// Whether drafts are looked up in the conversation.
    pub looks_up: bool,
    pub text: TextOptions,
    pub stop_ids: Vec<u32>,
    pub processors: LogitProcessors,
    /// Largest number of tokens that the conversation may have, answers included.
    pub context: usize,
    pub surface: Surface,
}

impl Conversation<'_> {
    /// Answers the user's messages until the input ends.
    pub fn hold<D: Device>(&self, engine: &mut Engine<D>, progress: &Progress) -> Result<()> {
        let terminal = input::is_terminal();
        if terminal {
            progress.note(HELP);
        }
        interrupt::catch_interrupts();
        let new = || self.template.system().into_iter().collect::<Vec<_>>();
        let mut warned = false;
        let (mut messages, mut last, mut all) = (new(), None, Stats::default());
        loop {
            let line = match input::next(terminal).map_err(CliError::Input)? {
                Input::Line(line) => line,
                Input::Interrupt => {
                    progress.note("\nCtrl-D or /quit ends the conversation.");
                    continue;
                }
                Input::End => break,
            };
            match line.as_str() {
                "" => continue,
                "/quit" | "/exit" => return Ok(()),
                "/help" => progress.note(HELP),
                "/reset" => {
                    (messages, last, all) = (new(), None, Stats::default());
                    progress.note("A new conversation begins.");
                }
                "/stats" => {
                    let time_error = engine.stats().step_times.map(|times| times.median_error);
                    self.show_stats(last.as_ref(), &all, time_error, progress);
                }
                command if looks_like_a_command(command) => {
                    progress.note(&format!("{command} is not a command. {HELP}"));
                }
                text => {
                    messages.push(ChatMessage::new("user", text));
                    match self.answer(engine, &messages, all.answers())? {
                        Ok((answer, stats)) => {
                            self.show_end(&answer, progress);
                            messages.push(ChatMessage::new("assistant", answer.text));
                            all.add(&stats);
                            last = Some(stats);
                            if let Some(shortfall) = self.card.shortfall(all.acceptance_length(), all.steps())
                                && !warned
                            {
                                progress.warn(&shortfall);
                                warned = true;
                            }
                        }
                        Err(error) => {
                            messages.pop();
                            progress.warn(&format!("{error}; /reset starts a new conversation"));
                        }
                    }
                }
            }
        }
        if terminal {
            // Without a line break, the shell's prompt would begin on the line of the last input prompt.
            let _ = writeln!(anstream::stderr());
        }
        Ok(())
    }

    /// Streams the answer to the last message. The inner error is a conversation that the context has no room for.
    fn answer<D: Device>(
        &self,
        engine: &mut Engine<D>,
        messages: &[ChatMessage],
        earlier: usize,
    ) -> Result<std::result::Result<(Sample, Stats), DecodeError>> {
        let Some(tokenizer) = &self.text.tokenizer else { return Ok(Err(DecodeError::EmptyPrompt)) };
        let prompt = self.template.prompt(messages, tokenizer)?;
        if prompt.len() >= self.context {
            return Ok(Err(DecodeError::PromptTooLong { tokens: prompt.len(), context_len: self.context }));
        }
        let seed = self.args.sampling.seed.wrapping_add(earlier as u64);
        let make = |seed| {
            let (args, processors, prompt) = (self.args, self.processors.clone(), prompt.clone());
            request::request(
                &args.decoding,
                &args.sampling,
                processors,
                prompt,
                &self.stop_ids,
                seed,
                self.looks_up,
            )
        };
        // An interrupt before this question must not stop the answer to it.
        interrupt::take_interrupt();
        let reused_before = engine.stats().prefixes.tokens_reused;
        let mut answer = Answer { out: self.surface.stdout(), surface: self.surface, sample: None };
        let (seeds, text) = (std::iter::once(seed), || self.text.after(&prompt));
        run::run(engine, 1, seeds, make, text, self.args.decoding.explain, &mut answer)?;
        answer.write("\n")?;
        let sample = answer.sample.unwrap_or_else(|| Sample::new(0, seed));
        let reused = engine.stats().prefixes.tokens_reused.saturating_sub(reused_before);
        let stats = Stats::of(&sample, prompt.len(), reused);
        Ok(Ok((sample, stats)))
    }

    /// Prints why an answer ended, if the model did not end it.
    fn show_end(&self, answer: &Sample, progress: &Progress) {
        let why = match &answer.finish {
            None => "stopped by Ctrl-C".to_owned(),
            Some(Finish::Length) if answer.output_ids.len() < self.args.decoding.max_new_tokens => {
                format!("the context of {} positions is full; /reset starts a new conversation", self.context)
            }
            Some(Finish::Length) => {
                format!("stopped after {} tokens; see --max-new-tokens", answer.output_ids.len())
            }
            Some(_) => return,
        };
        progress.note(&format!("({why})"));
    }

    /// Prints statistics of the answers. `time_error` is the median error of the step durations that the policy expected, if
    /// the policy expects durations.
    fn show_stats(&self, last: Option<&Stats>, all: &Stats, time_error: Option<f64>, progress: &Progress) {
        let Some(last) = last else { return progress.note("There are no answers yet.") };
        progress.note(&format!("last answer: {}", last.line()));
        progress.note(&format!("{} answers: {}", all.answers(), all.line()));
        if let Some(error) = time_error {
            progress.note(&run::time_error_line(ModeChoice::Auto.name(), error));
        }
    }
}

/// Returns whether a line looks like a command of the conversation: a slash and letters. Other lines with a slash, such
/// as comments and paths, are messages.
fn looks_like_a_command(line: &str) -> bool {
    let name = line.strip_prefix('/');
    name.is_some_and(|name| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphabetic()))
}

/// Writes an answer to stdout as it grows.
struct Answer<W: Write> {
    out: W,
    surface: Surface,
    sample: Option<Sample>,
}

impl<W: Write> Answer<W> {
    fn write(&mut self, text: &str) -> Result<()> {
        let mut rendered = String::new();
        self.surface.render(text, Style::new(), &mut rendered);
        self.out.write_all(rendered.as_bytes()).and_then(|()| self.out.flush()).map_err(CliError::Output)
    }
}

impl<W: Write> Observer for Answer<W> {
    fn committed(&mut self, _sample: &Sample, texts: &[String], _accepted: usize) -> Result<()> {
        self.write(&texts.concat())
    }

    fn finished(&mut self, sample: Sample, rest: &str) -> Result<()> {
        self.write(rest)?;
        self.sample = Some(sample);
        Ok(())
    }

    fn is_cancelled(&self) -> bool {
        interrupt::take_interrupt()
    }
}
