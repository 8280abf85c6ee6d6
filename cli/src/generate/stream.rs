//! Writes generated text to stdout as it is committed.
//!
//! On a terminal with colours, the colour changes with every step and accepted drafts are underlined, which shows the
//! tokens that were committed together. Otherwise stdout holds only the text.

use std::collections::BTreeMap;
use std::io::Write;

use anstyle::{AnsiColor, Style};

use crate::error::{CliError, Result};
use crate::progress::Progress;
use crate::run::{Collect, Observer, Sample};
use crate::surface::{Surface, visible};

/// Returns the style of a token in the `step`-th commit of a sample.
fn style(step: usize, drafted: bool) -> Style {
    let colour = if step.is_multiple_of(2) { AnsiColor::Cyan } else { AnsiColor::Yellow };
    let style = Style::new().fg_color(Some(colour.into()));
    if drafted { style.underline() } else { style }
}

/// Writes samples to stdout: the first unfinished sample as it grows, the others in order.
pub struct Streamer<'a, W: Write> {
    out: W,
    surface: Surface,
    progress: &'a Progress,
    /// Whether tokens have a text, which they have only if the model has a tokenizer.
    has_text: bool,
    /// The prompt, which is written dimmed before the first sample if there are colours.
    prompt: Option<&'a str>,
    several: bool,
    /// Index of the sample that is being written.
    current: usize,
    started: bool,
    ends_in_newline: bool,
    texts: BTreeMap<usize, Growing>,
    /// For a single sample without colours, the text that each commit added.
    commits: Vec<String>,
    samples: Collect,
}

/// A sample's text that is rendered but not yet written.
#[derive(Default)]
struct Growing {
    commits: usize,
    rendered: String,
}

impl<'a, W: Write> Streamer<'a, W> {
    pub fn new(
        out: W,
        surface: Surface,
        progress: &'a Progress,
        has_text: bool,
        prompt: Option<&'a str>,
        samples: usize,
    ) -> Self {
        Self {
            out,
            surface,
            progress,
            has_text,
            prompt: prompt.filter(|_| surface.has_colours()),
            several: samples > 1,
            current: 0,
            started: false,
            ends_in_newline: true,
            texts: BTreeMap::new(),
            commits: Vec::new(),
            samples: Collect::default(),
        }
    }

    /// Ends the text with a line break on a terminal. Returns the samples and, for a single sample without colours,
    /// the text that each commit added.
    pub fn finish(mut self) -> Result<(Vec<Sample>, Vec<String>)> {
        if matches!(self.surface, Surface::Terminal { .. }) && !self.ends_in_newline {
            self.write("\n")?;
        }
        Ok((self.samples.into_samples(), self.commits))
    }

    fn write(&mut self, text: &str) -> Result<()> {
        if let Some(last) = text.chars().next_back() {
            self.ends_in_newline = last == '\n';
        }
        self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush()).map_err(CliError::Output)
    }

    /// Writes the text before the current sample, once.
    fn start(&mut self, seed: u64) -> Result<()> {
        if std::mem::replace(&mut self.started, true) {
            return Ok(());
        }
        self.progress.clear();
        if self.several {
            if !self.ends_in_newline {
                self.write("\n")?;
            }
            let number = self.current + 1;
            let _ = writeln!(anstream::stderr(), "{0}sample {number}, seed {seed}{0:#}", Style::new().bold());
        }
        if let Some(prompt) = self.prompt {
            let mut rendered = String::new();
            self.surface.render(prompt, Style::new().dimmed(), &mut rendered);
            self.write(&rendered)?;
        }
        Ok(())
    }

    /// Writes the new text of the current sample, if `index` is the current sample.
    fn write_current(&mut self, index: usize, seed: u64) -> Result<()> {
        if index != self.current {
            return Ok(());
        }
        self.start(seed)?;
        let rendered = self.texts.get_mut(&index).map(|growing| std::mem::take(&mut growing.rendered));
        self.write(&rendered.unwrap_or_default())
    }
}

impl<W: Write> Observer for Streamer<'_, W> {
    fn reading(&mut self) {
        if !self.started {
            self.progress.reading();
        }
    }

    fn committed(&mut self, sample: &Sample, texts: &[String], accepted: usize) -> Result<()> {
        let surface = self.surface;
        let growing = self.texts.entry(sample.index).or_default();
        for (i, text) in texts.iter().enumerate() {
            surface.render(text, style(growing.commits, i < accepted), &mut growing.rendered);
        }
        growing.commits += 1;
        if !self.several && !surface.has_colours() && self.has_text {
            let texts: Vec<String> = texts.iter().map(|text| visible(text)).collect();
            self.commits.push(format!("[{}]", texts.join("|")));
        }
        self.write_current(sample.index, sample.seed)
    }

    fn finished(&mut self, sample: Sample, rest: &str) -> Result<()> {
        let growing = self.texts.entry(sample.index).or_default();
        self.surface.render(rest, style(growing.commits.saturating_sub(1), false), &mut growing.rendered);
        self.samples.finished(sample, rest)?;
        while let Some(seed) = self.samples.seed(self.current) {
            self.write_current(self.current, seed)?;
            self.texts.remove(&self.current);
            self.current += 1;
            self.started = false;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_end_before_each_line_does() {
        let mut coloured = String::new();
        Surface::Terminal { colours: true }.render("a\n\nb", style(0, true), &mut coloured);
        let styled = |text| format!("{0}{text}{0:#}", style(0, true));
        assert_eq!(coloured, format!("{}\n\n{}", styled("a"), styled("b")));
        assert_ne!(style(0, true), style(0, false));
        assert_ne!(style(0, false), style(1, false));
        assert_eq!(style(0, true), style(2, true));
    }
}
