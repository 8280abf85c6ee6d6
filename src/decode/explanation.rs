//! Explanations of a policy's choices, for tuning the policy.

use std::fmt;

use crate::layout::GroupSet;

/// The explanation of a policy's choice for the last step: the alternatives that the policy compared, with their
/// expected tokens and durations.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Explanation {
    /// The price of time, in tokens per second: the number of tokens that the same time is expected to yield otherwise.
    pub price: f64,
    /// The steps that the policy compared.
    pub alternatives: Vec<Alternative>,
    /// Index of the chosen step among the alternatives.
    pub chosen: usize,
    /// The reason for the choice.
    pub reason: Reason,
    /// The choices for the requests of the step, in order.
    pub choices: Vec<ExplainedChoice>,
}

/// A step that a policy considered.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Alternative {
    /// The way in which the step drafts.
    pub name: &'static str,
    /// The expected number of tokens, with the value of the drafts that the step makes.
    pub tokens: f64,
    /// The expected duration in seconds.
    pub seconds: f64,
    /// Number of candidate rows, prompts included.
    pub candidates: usize,
    /// Number of mask rows in the verification pass.
    pub mask_rows: usize,
    /// Number of mask rows in a drafting pass, expected before the accepted lengths are known.
    pub draft_rows: usize,
}

/// The choice for one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExplainedChoice {
    /// The request's number.
    pub number: u64,
    /// v: the verify length.
    pub verify_len: usize,
    /// K: the accepted lengths that have a mask group.
    pub groups: GroupSet,
    /// Whether the next block is drafted.
    pub draft: bool,
}

/// Why a step was chosen among its alternatives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reason {
    /// The step has the largest worth: its tokens, minus its duration at the price of time.
    #[default]
    Best,
    /// A trial: within the error of the expected durations, the step could be better than the best step.
    UnknownDuration,
    /// A trial: no drafts were made for many steps, so the estimated value of drafts is out of date.
    OldDrafts,
    /// In the last comparisons, decoding without drafts was better by far, so this step was not compared with
    /// alternatives.
    Settled,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Best => "best",
            Self::UnknownDuration => "trial of an uncertain duration",
            Self::OldDrafts => "trial of drafts after a long time without",
            Self::Settled => "drafts far from paying, not compared again",
        })
    }
}

impl Explanation {
    /// Returns the worth of the alternative: its tokens minus the tokens that its duration would yield otherwise.
    fn worth(&self, alternative: &Alternative) -> f64 {
        alternative.tokens - self.price * alternative.seconds
    }
}

/// Writes some lines: one with the choice, one per alternative, and one with the verify lengths and mask groups, in which
/// requests of the same choice share an entry.
impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.alternatives.get(self.chosen).map_or("nothing", |chosen| chosen.name);
        writeln!(f, "chose {name}: {}, at {:.1} tokens/s", self.reason, self.price)?;
        for (index, alternative) in self.alternatives.iter().enumerate() {
            let Alternative { name, tokens, seconds, candidates, mask_rows, draft_rows } = alternative;
            let mark = if index == self.chosen { '>' } else { ' ' };
            writeln!(
                f,
                "{mark} {name:<18} {tokens:>8.2} tokens in {:>9.3} ms, worth {:>8.2}; rows: {candidates} candidates, \
                 {mask_rows} mask, {draft_rows} in a drafting pass",
                seconds * 1e3,
                self.worth(alternative),
            )?;
        }
        write!(f, " ")?;
        let mut rest: &[ExplainedChoice] = &self.choices;
        while let Some(&choice) = rest.first() {
            let first = choice.number;
            let same = rest
                .iter()
                .take_while(|other| ExplainedChoice { number: first, ..**other } == choice)
                .count();
            let (these, others) = rest.split_at(same);
            let last = these.last().map_or(first, |last| last.number);
            if first == last {
                write!(f, " request {first}:")?
            } else {
                write!(f, " requests {first} to {last}:")?
            }
            write!(f, " v {}, ", choice.verify_len)?;
            let groups: Vec<String> = choice.groups.iter().map(|group| group.to_string()).collect();
            match (choice.draft, groups.as_slice()) {
                (false, _) => write!(f, "no draft;")?,
                (true, []) => write!(f, "separate draft;")?,
                (true, groups) => write!(f, "groups {};", groups.join(","))?,
            }
            rest = others;
        }
        writeln!(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_explanation_as_text() {
        let alternative = |name, tokens, seconds, mask_rows| Alternative {
            name,
            tokens,
            seconds,
            candidates: 3,
            mask_rows,
            draft_rows: 0,
        };
        let choice =
            |number, verify_len, groups, draft| ExplainedChoice { number, verify_len, groups, draft };
        let explanation = Explanation {
            price: 100.0,
            alternatives: vec![alternative("no drafts", 1.5, 0.01, 0), alternative("in pass", 3.0, 0.02, 32)],
            chosen: 1,
            reason: Reason::Best,
            choices: vec![
                choice(4, 2, GroupSet::NONE.with(0).with(2), true),
                choice(7, 0, GroupSet::NONE, false),
                choice(8, 0, GroupSet::NONE, false),
                choice(9, 1, GroupSet::NONE, true),
            ],
        };
        let lines: Vec<String> = explanation
            .to_string()
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        assert_eq!(
            lines,
            [
                "chose in pass: best, at 100.0 tokens/s",
                "no drafts 1.50 tokens in 10.000 ms, worth 0.50; rows: 3 candidates, 0 mask, 0 in a drafting pass",
                "> in pass 3.00 tokens in 20.000 ms, worth 1.00; rows: 3 candidates, 32 mask, 0 in a drafting pass",
                "request 4: v 2, groups 0,2; requests 7 to 8: v 0, no draft; request 9: v 1, separate draft;",
            ]
        );
    }
}
