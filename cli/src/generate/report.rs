//! The report after the generated text: steps, acceptance, speeds, and whether the modes agree.

use std::fmt::Write;

use anstyle::Style;

use super::compare::Measured;
use crate::run::time_error_line;

/// Width of a line, in characters.
const WIDTH: usize = 78;

/// Maximum number of lines of the list of steps.
const STEP_LINES: usize = 24;

/// Size of weights, in bytes, below which they stay in the caches of most processors.
const CACHE_BYTES: usize = 64 << 20;

/// Properties of the model that the report needs.
#[derive(Debug)]
pub struct Facts {
    /// Number of layers of the target.
    pub layers: usize,
    /// Number of the target's last layers in which the drafter works (the tail); 0 without a drafter.
    pub tail_layers: usize,
    /// Number of slots in a drafted block, as the requests set it.
    pub block_size: usize,
    /// Whether drafts are looked up in the text, without a drafter.
    pub looks_up: bool,
    /// Bytes of weights that plain decoding reads per token.
    pub weight_bytes: usize,
}

impl Facts {
    /// Returns whether anything drafts.
    pub fn drafts(&self) -> bool {
        self.tail_layers > 0 || self.looks_up
    }
}

/// The result of comparing the output of every mode with plain decoding (`ar`).
#[derive(Debug)]
pub enum Verdict {
    /// The other modes were not run.
    NotCompared,
    /// There is no drafter, so there is nothing to compare.
    NoDrafter,
    /// Every mode gave the same tokens as `ar`.
    Lossless { tokens: usize },
    /// The acceptance rule preserves the distribution of the output but not its tokens, so tokens are not compared.
    SameDistribution { rule: &'static str },
    /// A mode gave different tokens, which is an error.
    Broken(String),
    /// The device does not guarantee equal tokens; `difference` describes the first difference, if there is one.
    Labelled { label: &'static str, difference: Option<String> },
}

/// Returns the final report on the measured modes. `shown` is the mode whose text was shown. `commits` lists the text
/// that each commit added, if the shown text itself could not mark it.
pub fn report(
    facts: &Facts,
    shown: &str,
    commits: &[String],
    modes: &[Measured],
    verdict: &Verdict,
) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = write_report(&mut out, facts, shown, commits, modes, verdict);
    out
}

fn write_report(
    out: &mut String,
    facts: &Facts,
    shown: &str,
    commits: &[String],
    modes: &[Measured],
    verdict: &Verdict,
) -> std::fmt::Result {
    let Some(shown) = modes.iter().find(|mode| mode.name == shown) else { return Ok(()) };
    let bold = Style::new().bold();
    writeln!(out)?;
    let samples = match shown.samples.len() {
        1 => String::new(),
        samples => format!(" in {samples} samples"),
    };
    writeln!(
        out,
        "{bold}{}{samples}, {} by `{}`{bold:#}",
        counted(shown.tokens(), "token"),
        counted(shown.steps(), "step"),
        shown.name
    )?;
    if shown.steps() > 0 {
        if shown.steps() == shown.decoded_tokens() {
            writeln!(out, "Each step committed one token.")?;
        } else if !commits.is_empty() {
            writeln!(out, "Tokens that the prompt's pass and then each step committed, separated by bars:")?;
            out.push_str(&wrapped(commits, STEP_LINES));
        } else if let [sample] = shown.samples.as_slice() {
            writeln!(out, "Tokens that each step committed:")?;
            let counts: Vec<_> = sample.steps.iter().map(|step| (step.accepted + 1).to_string()).collect();
            out.push_str(&wrapped(&counts, STEP_LINES));
        }
        writeln!(out)?;
        writeln!(out, "mode        tokens/s   steps   acceptance length   target passes per token")?;
        for mode in modes {
            let speed = mode.tokens_per_second().map_or("-".to_owned(), |speed| format!("{speed:.1}"));
            let (length, passes) = (mode.acceptance_length(), mode.passes_a_token());
            let steps = mode.steps();
            writeln!(out, "{:<11} {speed:>8}  {steps:>6}   {length:>17.2}   {passes:>23.3}", mode.name)?;
        }
        let time_error = |mode: &Measured| Some((mode.name, mode.median_time_error()?));
        for (name, error) in modes.iter().filter_map(time_error) {
            writeln!(out)?;
            writeln!(out, "{}", time_error_line(name, error))?;
        }
        if let Some(meaning) = meaning(facts, modes) {
            writeln!(out)?;
            out.push_str(&paragraph(&meaning));
        }
    }
    let verdict = match verdict {
        Verdict::NotCompared => return Ok(()),
        Verdict::NoDrafter => {
            "Without a drafter there is nothing to compare: this was plain decoding.".to_owned()
        }
        Verdict::Lossless { tokens } => {
            format!("Lossless: every mode gave the same {} as `ar`.", counted(*tokens, "token"))
        }
        Verdict::SameDistribution { rule } => format!(
            "Lossless in distribution: `{rule}` keeps the target's distribution, not the tokens of `ar`, so one \
             run cannot check it. `--rule match` gives exactly the tokens of `ar`."
        ),
        Verdict::Broken(difference) => format!("NOT LOSSLESS: {difference}."),
        Verdict::Labelled { label, difference } => {
            let seen =
                difference.as_ref().map_or(String::new(), |difference| format!(" Here, {difference}."));
            format!("Results are {label}: a row's result depends on the other rows of the product.{seen}")
        }
    };
    writeln!(out)?;
    writeln!(out, "{bold}{}{bold:#}", paragraph(&verdict).trim_end())
}

/// Explains what the speeds mean on this machine and for this model.
fn meaning(facts: &Facts, modes: &[Measured]) -> Option<String> {
    let mode = |name| modes.iter().find(|mode| mode.name == name);
    let (ar, sequential) = (mode("ar")?, mode("sequential")?);
    let speed = |mode: &Measured| Some(mode.tokens_per_second()? / ar.tokens_per_second()?);
    let duration = |mode: &Measured| Some(mode.seconds_a_step()? / ar.seconds_a_step()?);
    let mask_rows = |mode: &Measured| mode.groups() * facts.block_size as f64;
    // A drafter that needs the bonus token (Orthrus) has no mode `parallel`.
    let mut text = match mode("parallel") {
        Some(parallel) => format!(
            "On this machine `sequential` decodes at {:.2} times the speed of `ar`, `parallel` at {:.2} times. A step \
             of `ar` computes 1 row. A step of `sequential` computes {:.1} rows, and {:.1} mask rows in {} of the {} \
             layers, and takes {:.1} times as long. A step of `parallel` computes {:.1} rows and {:.1} mask rows, and \
             takes {:.1} times as long. A mode is faster than `ar` if this factor is below its acceptance length. More \
             rows are nearly free only if reading the weights limits a pass, as on a GPU at small batches.",
            speed(sequential)?,
            speed(parallel)?,
            sequential.candidate_rows(),
            mask_rows(sequential),
            facts.tail_layers,
            facts.layers,
            duration(sequential)?,
            parallel.candidate_rows(),
            mask_rows(parallel),
            duration(parallel)?,
        ),
        None if facts.looks_up => format!(
            "On this machine `sequential` decodes at {:.2} times the speed of `ar`. A step of `ar` computes 1 row. A \
             step of `sequential` computes {:.1} rows, and takes {:.1} times as long: the lookup itself computes \
             nothing. It is faster than `ar` if this factor is below its acceptance length, which depends on how much \
             the text repeats itself. More rows are nearly free only if reading the weights limits a pass, as on a GPU \
             at small batches.",
            speed(sequential)?,
            sequential.candidate_rows(),
            duration(sequential)?,
        ),
        None => format!(
            "On this machine `sequential` decodes at {:.2} times the speed of `ar`. A step of `ar` computes 1 row. A \
             step of `sequential` computes {:.1} rows, and {:.1} mask rows in {} of the {} layers, and takes {:.1} \
             times as long. It is faster than `ar` if this factor is below its acceptance length. The step reads as \
             many weights as two steps of `ar`: even where reading the weights limits a pass, as on a GPU at small \
             batches, only an acceptance length above 2 gains.",
            speed(sequential)?,
            sequential.candidate_rows(),
            mask_rows(sequential),
            facts.tail_layers,
            facts.layers,
            duration(sequential)?,
        ),
    };
    if facts.weight_bytes < CACHE_BYTES {
        let _ = write!(
            text,
            " The {:.1} MB of this model's weights stay in the processor's caches, so fewer passes over the weights save \
             little: the speeds say nothing about larger models.",
            facts.weight_bytes as f64 / 1e6
        );
    }
    Some(text)
}

fn counted(count: usize, thing: &str) -> String {
    if count == 1 { format!("1 {thing}") } else { format!("{count} {thing}s") }
}

fn paragraph(text: &str) -> String {
    let words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
    wrapped(&words, usize::MAX)
}

/// Wraps words to lines of bounded width. After `max_lines` lines, a remark gives the number of words left.
fn wrapped(words: &[String], max_lines: usize) -> String {
    let (mut out, mut width, mut lines) = (String::new(), 0, 0);
    for (i, word) in words.iter().enumerate() {
        let len = word.chars().count();
        if width > 0 && width + 1 + len > WIDTH {
            out.push('\n');
            (width, lines) = (0, lines + 1);
            if lines == max_lines {
                let _ = writeln!(out, "… and {} more", words.len() - i);
                return out;
            }
        } else if width > 0 {
            out.push(' ');
            width += 1;
        }
        out.push_str(word);
        width += len;
    }
    out.push('\n');
    out
}

#[cfg(test)]
mod tests {
    use flexdraft::decode::{BlockRecord, StepMode, StepRecord};

    use super::*;
    use crate::run::Sample;

    #[test]
    fn a_broken_guarantee_is_loud() {
        let facts = Facts { layers: 4, tail_layers: 2, block_size: 8, looks_up: false, weight_bytes: 0 };
        let modes = [Measured::new("ar", vec![Sample::new(0, 0)])];
        let said = |verdict| report(&facts, "ar", &[], &modes, &verdict);
        assert!(said(Verdict::Broken("here".into())).contains("NOT LOSSLESS: here."));
        assert!(said(Verdict::Lossless { tokens: 1 }).contains("the same 1 token as `ar`"));
        assert!(!said(Verdict::NotCompared).contains("ossless"));
        let label = "not lossless (--products any)";
        let labelled = |difference| said(Verdict::Labelled { label, difference });
        for text in [labelled(None), labelled(Some("token 3 is 4, not 5".into()))] {
            assert!(text.contains("not lossless (--products any)") && !text.contains("Lossless"), "{text}");
        }
        assert!(labelled(Some("token 3 is 4, not 5".into())).contains("Here, token 3 is 4, not 5."));
    }

    #[test]
    fn only_modes_that_expect_times_have_an_error() {
        let facts = Facts { layers: 4, tail_layers: 2, block_size: 8, looks_up: false, weight_bytes: 0 };
        let step = StepRecord {
            mode: StepMode::Autoregressive,
            position: 3,
            verify_len: 0,
            groups: Vec::new(),
            candidates: vec![1],
            accepted: 0,
            next: BlockRecord { bonus: 1, draft: Vec::new(), confidence: Vec::new() },
        };
        let mode = |name, median_time_error| {
            let steps = vec![step.clone()];
            Measured::new(name, vec![Sample { steps, median_time_error, ..Sample::new(0, 0) }])
        };
        let modes = [mode("ar", None), mode("auto", Some(0.066))];
        let text = report(&facts, "ar", &[], &modes, &Verdict::NotCompared);
        assert!(
            text.contains("`auto` expected the times of its last steps with a median error of 7%."),
            "{text}"
        );
        assert_eq!(text.matches("expected").count(), 1, "{text}");
    }

    #[test]
    fn lists_are_wrapped_and_cut() {
        let words = |n: usize| vec!["123456789".to_owned(); n];
        assert_eq!(wrapped(&words(2), 1), "123456789 123456789\n");
        let line = ["123456789"; 7].join(" ");
        assert_eq!(wrapped(&words(14), 2), format!("{line}\n{line}\n"));
        assert_eq!(wrapped(&words(15), 2), format!("{line}\n{line}\n… and 1 more\n"));
        assert_eq!(wrapped(&["x".repeat(200)], 1), format!("{}\n", "x".repeat(200)));
    }
}
