//! The report of an evaluation: what decoding with a drafter gave, in numbers.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::decoding::Run;
use super::walked::Walked;
use crate::calibration::{BINS, Bin, Calibration};

/// Acceptance counts of one slot of the block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slot {
    /// Number of steps that verified the slot.
    pub verified: usize,
    /// Number of steps that verified the slot and accepted all slots before it.
    pub reached: usize,
    /// Number of steps that accepted the slot.
    pub accepted: usize,
}

impl Slot {
    /// Returns the share of accepted drafts among all verifications of the slot.
    pub fn acceptance(&self) -> f64 {
        ratio(self.accepted, self.verified)
    }

    /// Returns the share of accepted drafts among the verifications in which all slots before this slot were accepted.
    pub fn conditional_acceptance(&self) -> f64 {
        ratio(self.accepted, self.reached)
    }
}

/// Counts of decoding one prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Continuation {
    /// Number of tokens of the response.
    pub tokens: usize,
    /// Number of verifications; reading the prompt does not count.
    pub steps: usize,
    /// Number of accepted drafts, before the response was cut at its end.
    pub accepted: usize,
}

/// The results of decoding with a drafter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Acceptance length τ: the mean of accepted + 1 over all steps; `None` if there are no steps.
    pub tau: Option<f64>,
    /// Passes of the target per generated token. Excludes the passes that read the prompts and the first token of
    /// each response, which those passes produced. `None` if there are no other tokens.
    pub passes_per_token: Option<f64>,
    /// True if the tokens were compared with plain decoding and found equal, as greedy decoding and the rule `match`
    /// guarantee.
    pub compared: bool,
    /// Calibration error: the mean distance between confidence and acceptance over the bins, weighted by their number
    /// of drafts.
    pub calibration_error: f64,
    /// The reliability diagram: confidence against acceptance; bin i starts at confidence i/10.
    pub reliability: Vec<Bin>,
    /// Acceptance counts of the slots after slot 0.
    pub slots: Vec<Slot>,
    /// Tokens, verifications and accepted drafts of each prompt.
    pub prompts: Vec<Continuation>,
    /// The acceptance length along greedy transcripts, if the evaluation was given transcripts.
    pub walk: Option<Walked>,
}

/// Running sums over the steps of an evaluation.
#[derive(Default)]
pub(super) struct Tally {
    slots: Vec<Slot>,
    calibration: Calibration,
    prompts: Vec<Continuation>,
}

impl Tally {
    pub(super) fn add(&mut self, run: &Run) {
        for (confidences, step) in &run.steps {
            let reached = step.verify_len.min(step.accepted + 1);
            self.slots.resize(self.slots.len().max(confidences.len()), Slot::default());
            for (index, slot) in self.slots.iter_mut().enumerate().take(step.verify_len) {
                slot.verified += 1;
                slot.reached += usize::from(index < reached);
                slot.accepted += usize::from(index < step.accepted);
            }
            for (index, &confidence) in confidences.iter().enumerate().take(reached) {
                self.calibration.add(confidence, index < step.accepted);
            }
        }
        self.prompts.push(Continuation {
            tokens: run.response.len(),
            steps: run.steps.len(),
            accepted: run.steps.iter().map(|(_, step)| step.accepted).sum(),
        });
    }

    pub(super) fn report(self, compared: bool) -> Report {
        let sum = |of: fn(&Continuation) -> usize| self.prompts.iter().map(of).sum::<usize>();
        let (tokens, steps, accepted) = (sum(|p| p.tokens), sum(|p| p.steps), sum(|p| p.accepted));
        let read = self.prompts.iter().filter(|prompt| prompt.tokens > 0).count();
        Report {
            tau: (steps > 0).then(|| ratio(accepted + steps, steps)),
            passes_per_token: (tokens > read).then(|| ratio(steps, tokens - read)),
            compared,
            calibration_error: self.calibration.error(),
            reliability: self.calibration.reliability(),
            slots: self.slots,
            prompts: self.prompts,
            walk: None,
        }
    }
}

/// Returns `part / whole`, or 0 if `whole` is 0.
fn ratio(part: usize, whole: usize) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tokens: usize = self.prompts.iter().map(|prompt| prompt.tokens).sum();
        writeln!(f, "prompts                  {:>8}", self.prompts.len())?;
        writeln!(f, "tokens                   {tokens:>8}")?;
        let number =
            |value: Option<f64>| value.map_or_else(|| "none".to_owned(), |value| format!("{value:.3}"));
        writeln!(f, "acceptance length τ      {:>8}", number(self.tau))?;
        match &self.walk {
            Some(walked) => writeln!(f, "{walked}")?,
            None => writeln!(f, "τ by walking transcripts     none")?,
        }
        writeln!(f, "target passes per token  {:>8}", number(self.passes_per_token))?;
        writeln!(f, "calibration error        {:>8.3}", self.calibration_error)?;
        let compared = if self.compared { "same tokens" } else { "same law" };
        writeln!(f, "with drafts and without  {compared:>8}")?;
        writeln!(f, "\nslot  verified  accepted  accepted if all before were")?;
        for (index, slot) in self.slots.iter().enumerate() {
            let (slot_number, verified) = (index + 1, slot.verified);
            let (acceptance, conditional) = (slot.acceptance(), slot.conditional_acceptance());
            writeln!(f, "{slot_number:>4}  {verified:>8}  {acceptance:>8.3}  {conditional:>27.3}")?;
        }
        writeln!(f, "\nconfidence   drafts  mean confidence  accepted")?;
        for (index, bin) in self.reliability.iter().enumerate().filter(|(_, bin)| bin.drafts > 0) {
            let (from, to) = (index as f64 / BINS as f64, (index + 1) as f64 / BINS as f64);
            let Bin { drafts, confidence, accepted } = bin;
            writeln!(f, "{from:>4.1} to {to:.1}  {drafts:>7}  {confidence:>15.3}  {accepted:>8.3}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use flexdraft::decode::{BlockRecord, Record, StepMode, StepRecord};

    use super::*;

    fn step(verify_len: usize, accepted: usize, confidence: &[f32]) -> Record {
        Record::Step(StepRecord {
            mode: StepMode::Parallel,
            position: 0,
            verify_len,
            groups: Vec::new(),
            candidates: Vec::new(),
            accepted,
            next: BlockRecord { confidence: confidence.to_vec(), ..BlockRecord::default() },
        })
    }

    /// The first step accepts 2 of 3 drafts, the second 0 of 1.
    fn report() -> Report {
        let mut run = Run { response: vec![0; 5], ..Run::default() };
        run.take(Record::Prefill(BlockRecord { confidence: vec![0.95, 0.85, 0.15], ..Default::default() }));
        run.take(step(3, 2, &[0.55, 0.5, 0.5]));
        run.take(step(1, 0, &[0.1, 0.1, 0.1]));
        let mut tally = Tally::default();
        tally.add(&run);
        tally.report(true)
    }

    #[test]
    fn counts() {
        let report = report();
        assert_eq!(report.tau, Some(2.0));
        assert_eq!(report.passes_per_token, Some(0.5));
        let slot = |verified, reached, accepted| Slot { verified, reached, accepted };
        assert_eq!(report.slots, [slot(2, 2, 1), slot(1, 1, 1), slot(1, 1, 0)]);
        assert_eq!(report.prompts, [Continuation { tokens: 5, steps: 2, accepted: 2 }]);
    }

    #[test]
    fn without_steps_there_is_no_acceptance_length() {
        let mut tally = Tally::default();
        tally.add(&Run { response: vec![7], ..Run::default() });
        let report = tally.report(true);
        assert_eq!((report.tau, report.passes_per_token), (None, None));
        assert!(report.to_string().contains("acceptance length τ          none\n"), "{report}");
        let json = serde_json::to_value(&report).unwrap();
        assert!(json["tau"].is_null());
    }

    #[test]
    fn slots_after_a_rejected_one_are_verified_and_not_reached() {
        let mut run = Run::default();
        run.take(Record::Prefill(BlockRecord { confidence: vec![0.5; 3], ..Default::default() }));
        run.take(step(3, 0, &[]));
        let mut tally = Tally::default();
        tally.add(&run);
        let report = tally.report(false);
        let last = report.slots[2];
        assert_eq!((last.verified, last.reached, last.accepted), (1, 0, 0));
        assert_eq!((last.acceptance(), last.conditional_acceptance()), (0.0, 0.0));
        assert_eq!(report.reliability[5].drafts, 1);
    }

    #[test]
    fn calibration_error_is_the_mean_distance() {
        let report = report();
        // Of 4 drafts, the ones with confidence 0.95 and 0.85 are accepted, 0.15 and 0.55 are not.
        let expected = (0.05 + 0.15 + 0.15 + 0.55) / 4.0;
        assert!((report.calibration_error - expected).abs() < 1e-6, "{}", report.calibration_error);
    }

    #[test]
    fn the_table_is_readable_and_the_json_whole() {
        let report = report();
        let table = report.to_string();
        assert!(table.contains("acceptance length τ         2.000"), "{table}");
        assert!(table.contains(" 0.9 to 1.0        1            0.950     1.000"), "{table}");
        let json = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<Report>(&json).unwrap(), report);
    }
}
