//! Runs the same requests in every mode, and compares their speeds and tokens.

use std::time::{Duration, Instant};

use flexdraft::decode::StepRecord;
use flexdraft::model::DrafterKind;

use crate::args::ModeChoice;
use crate::error::Result;
use crate::run::{Sample, mean};

/// Total time up to which the runs of a mode are repeated; the time of the fastest run is reported.
const MEASURING_TIME: Duration = Duration::from_millis(250);

/// The measurements of the requests in one mode.
#[derive(Debug)]
pub struct Measured {
    /// Name of the mode, as `--mode` spells it.
    pub name: &'static str,
    pub samples: Vec<Sample>,
    /// Decoding time of the fastest run, in seconds.
    pub decode_seconds: f64,
}

impl Measured {
    pub fn new(name: &'static str, samples: Vec<Sample>) -> Self {
        let decode_seconds = decode_seconds(&samples);
        Self { name, samples, decode_seconds }
    }

    /// Runs the requests again until the repetitions have taken [`MEASURING_TIME`], and keeps the time of the fastest
    /// run.
    pub fn repeat(&mut self, mut run: impl FnMut() -> Result<Vec<Sample>>) -> Result<()> {
        let start = Instant::now();
        let first = Duration::from_secs_f64(self.decode_seconds.clamp(0.0, 1e9));
        while start.elapsed() + first < MEASURING_TIME {
            self.decode_seconds = self.decode_seconds.min(decode_seconds(&run()?));
        }
        Ok(())
    }

    /// Returns the number of output tokens.
    pub fn tokens(&self) -> usize {
        self.samples.iter().map(|sample| sample.output_ids.len()).sum()
    }

    /// Returns the number of tokens that decoding produced: all but each sample's first, which reading the prompt
    /// produces.
    pub fn decoded_tokens(&self) -> usize {
        self.samples.iter().map(Sample::decoded_tokens).sum()
    }

    pub fn steps(&self) -> usize {
        self.samples.iter().map(|sample| sample.steps.len()).sum()
    }

    /// Returns the median error of the step durations that the policy expected, as of the end of the last sample; `None` if
    /// the policy expects no durations.
    pub fn median_time_error(&self) -> Option<f64> {
        self.samples.last()?.median_time_error
    }

    /// Returns the acceptance length τ over all samples.
    pub fn acceptance_length(&self) -> f64 {
        self.mean_over_steps(|step| step.accepted + 1)
    }

    /// Returns the mean number of candidate rows per step and sample. Each candidate row runs through all layers of the
    /// target.
    pub fn candidate_rows(&self) -> f64 {
        self.mean_over_steps(|step| step.candidates.len())
    }

    /// Returns the mean number of mask groups per step and sample, in the verifying pass or in a pass after it.
    pub fn groups(&self) -> f64 {
        self.mean_over_steps(|step| match step.groups.len() {
            0 if step.next.draft.is_empty() => 0,
            groups => groups.max(1),
        })
    }

    fn mean_over_steps(&self, of: impl Fn(&StepRecord) -> usize) -> f64 {
        let steps = || self.samples.iter().flat_map(|sample| &sample.steps);
        mean(steps().map(of).sum(), steps().count())
    }

    /// Returns the number of passes through the target per decoded token.
    pub fn passes_a_token(&self) -> f64 {
        mean(self.steps(), self.decoded_tokens())
    }

    /// Returns the seconds per step and sample; `None` if there was no step.
    pub fn seconds_a_step(&self) -> Option<f64> {
        let steps = self.steps();
        (steps > 0 && self.decode_seconds > 0.0).then(|| self.decode_seconds / steps as f64)
    }

    /// Returns the decoded tokens per second; `None` if nothing was decoded.
    pub fn tokens_per_second(&self) -> Option<f64> {
        let tokens = self.decoded_tokens();
        (tokens > 0 && self.decode_seconds > 0.0).then(|| tokens as f64 / self.decode_seconds)
    }
}

fn decode_seconds(samples: &[Sample]) -> f64 {
    samples.iter().map(|sample| sample.decode_seconds).sum()
}

/// Returns the modes that are compared for a drafter of this kind, or for drafts without a drafter, in the order of the
/// report.
pub fn modes(kind: Option<DrafterKind>) -> Vec<ModeChoice> {
    let mut modes = vec![ModeChoice::Ar, ModeChoice::Parallel, ModeChoice::Sequential, ModeChoice::Auto];
    modes.retain(|&mode| {
        mode != ModeChoice::Parallel || kind.is_some_and(DrafterKind::drafts_while_verifying)
    });
    modes
}

/// Describes the first difference between `other` and `ar`, if there is one.
pub fn first_difference(ar: &Measured, other: &Measured) -> Option<String> {
    ar.samples.iter().zip(&other.samples).find_map(|(expected, found)| {
        let (expected_ids, found_ids) = (&expected.output_ids, &found.output_ids);
        if expected_ids == found_ids {
            return None;
        }
        let same = expected_ids.iter().zip(found_ids).take_while(|(a, b)| a == b).count();
        let id = |ids: &[u32]| ids.get(same).map_or("the end".to_owned(), |id| format!("id {id}"));
        Some(format!(
            "`{}` gave {} where `{}` gave {}, at output token {same} of sample {} (seed {})",
            other.name,
            id(found_ids),
            ar.name,
            id(expected_ids),
            expected.index,
            expected.seed,
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(name: &'static str, outputs: [&[u32]; 2]) -> Measured {
        let sample = |(index, ids): (usize, &&[u32])| Sample {
            output_ids: ids.to_vec(),
            decode_seconds: 0.5,
            ..Sample::new(index, 7 + index as u64)
        };
        Measured::new(name, outputs.iter().enumerate().map(sample).collect())
    }

    #[test]
    fn the_first_difference_is_named() {
        let ar = measured("ar", [&[1, 2, 3], &[4, 5]]);
        assert_eq!(first_difference(&ar, &measured("parallel", [&[1, 2, 3], &[4, 5]])), None);
        assert_eq!(
            first_difference(&ar, &measured("parallel", [&[1, 2, 3], &[4, 6]])).unwrap(),
            "`parallel` gave id 6 where `ar` gave id 5, at output token 1 of sample 1 (seed 8)"
        );
        assert_eq!(
            first_difference(&ar, &measured("sequential", [&[1, 2], &[4, 5]])).unwrap(),
            "`sequential` gave the end where `ar` gave id 3, at output token 2 of sample 0 (seed 7)"
        );
    }

    #[test]
    fn tokens_of_the_prompts_pass_are_not_decoded_ones() {
        let ar = measured("ar", [&[1, 2, 3], &[4, 5]]);
        assert_eq!((ar.tokens(), ar.decoded_tokens()), (5, 3));
        assert_eq!(ar.tokens_per_second(), Some(3.0));
        assert_eq!(measured("ar", [&[1], &[]]).tokens_per_second(), None);
        assert_eq!((ar.acceptance_length(), ar.passes_a_token()), (0.0, 0.0));
    }

    #[test]
    fn long_runs_are_not_repeated_and_the_fastest_counts() {
        let mut slow = measured("ar", [&[1, 2], &[3, 4]]);
        let again = |seconds: f64| move || Ok(vec![Sample { decode_seconds: seconds, ..Sample::new(0, 0) }]);
        slow.repeat(again(0.1)).unwrap();
        assert_eq!(slow.decode_seconds, 1.0);
        let mut fast = Measured::new("ar", vec![Sample { decode_seconds: 0.2, ..Sample::new(0, 0) }]);
        fast.repeat(again(0.1)).unwrap();
        assert_eq!(fast.decode_seconds, 0.1);
    }
}
