//! Acceptance probabilities in hindsight: what the confidences of a recording say about its match lengths.
//!
//! The probability that a draft token is accepted, given that all earlier tokens of its draft are, is a non-decreasing
//! function of the token's confidence, one function per slot. Isotonic regression on the whole recording gives the
//! functions (pool adjacent violators: Ayer et al. 1955). A policy has to learn such functions while it runs.

use crate::recording::{Draft, Recording};

/// The acceptance probabilities of all drafts of a recording.
#[derive(Clone, Debug)]
pub struct Hindsight {
    transcripts: Vec<Transcript>,
}

#[derive(Clone, Debug)]
struct Transcript {
    /// The chances that the first j + 1 tokens of a draft are all accepted, for each position and slot j.
    survival: Vec<Vec<f32>>,
    /// The chances of all positions and slots, descending.
    chances: Vec<f32>,
    /// The sums of the first chances, from no chance on.
    sums: Vec<f64>,
}

impl Hindsight {
    /// Calibrates the confidences of `recording` on its own match lengths.
    pub fn of(recording: &Recording) -> Self {
        let slots = recording.block_size.saturating_sub(1);
        let functions: Vec<Vec<(f32, f64)>> = (0..slots)
            .map(|slot| {
                let drafts = recording.transcripts.iter().flatten();
                let tested = drafts.filter(|draft| draft.matches >= slot && slot < draft.confidence.len());
                isotonic(tested.map(|draft| (draft.confidence[slot], draft.matches > slot)).collect())
            })
            .collect();
        let survival = |draft: &Draft| {
            let mut product = 1.0;
            let chance = |(function, &confidence): (&Vec<(f32, f64)>, &f32)| {
                let place = function.partition_point(|&(most, _)| most < confidence);
                product *= function.get(place).or(function.last()).map_or(0.0, |&(_, chance)| chance);
                product as f32
            };
            functions.iter().zip(&draft.confidence).map(chance).collect()
        };
        let transcripts = recording.transcripts.iter().map(|drafts| {
            let survival: Vec<Vec<f32>> = drafts.iter().map(survival).collect();
            let mut chances: Vec<f32> = survival.iter().flatten().copied().collect();
            chances.sort_by(|a, b| b.total_cmp(a));
            let mut sum = 0.0;
            let further = chances.iter().map(|&chance| {
                sum += f64::from(chance);
                sum
            });
            let sums = std::iter::once(0.0).chain(further).collect();
            Transcript { survival, chances, sums }
        });
        Self { transcripts: transcripts.collect() }
    }

    /// Returns the chances that the first j + 1 tokens of the draft at position `at` of a transcript are all accepted.
    pub fn survival(&self, transcript: usize, at: usize) -> &[f32] {
        self.transcripts.get(transcript).and_then(|found| found.survival.get(at)).map_or(&[], Vec::as_slice)
    }

    /// Returns the mean value of a draft of the transcript in tokens, if verifying a row costs `price` tokens: the sum of the
    /// chances above the price, less the price of their rows.
    pub fn value(&self, transcript: usize, price: f64) -> f64 {
        let Some(found) = self.transcripts.get(transcript) else { return 0.0 };
        let rows = found.chances.partition_point(|&chance| f64::from(chance) > price);
        (found.sums[rows] - price * rows as f64) / found.survival.len().max(1) as f64
    }
}

/// Returns the non-decreasing step function with the least squared error: for each step, its largest argument and its value.
fn isotonic(mut outcomes: Vec<(f32, bool)>) -> Vec<(f32, f64)> {
    outcomes.sort_by(|a, b| a.0.total_cmp(&b.0));
    // The steps: the largest argument, the number of true outcomes, and the number of outcomes.
    let mut steps: Vec<(f32, f64, f64)> = Vec::new();
    for (confidence, outcome) in outcomes {
        let mut step = (confidence, f64::from(u8::from(outcome)), 1.0);
        while let Some(&(most, yes, all)) = steps.last()
            && (most == step.0 || yes * step.2 >= step.1 * all)
        {
            step = (step.0, step.1 + yes, step.2 + all);
            steps.pop();
        }
        steps.push(step);
    }
    steps.into_iter().map(|(most, yes, all)| (most, yes / all)).collect()
}

#[cfg(test)]
mod tests {
    use super::{Hindsight, isotonic};
    use crate::recording::Recording;

    #[test]
    fn neighbours_in_the_wrong_order_share_a_value() {
        let outcomes = |values: &[(f32, bool)]| isotonic(values.to_vec());
        assert_eq!(outcomes(&[]), []);
        assert_eq!(outcomes(&[(0.2, false), (0.9, true)]), [(0.2, 0.0), (0.9, 1.0)]);
        assert_eq!(outcomes(&[(0.9, false), (0.2, true), (0.1, false)]), [(0.1, 0.0), (0.9, 0.5)]);
        // Outcomes of the same confidence are one step, in any order.
        for same in [[(0.5, true), (0.5, false)], [(0.5, false), (0.5, true)]] {
            assert_eq!(outcomes(&same), [(0.5, 0.5)]);
        }
    }

    #[test]
    fn chances_add_up_to_the_match_lengths() {
        let recording = Recording::parse(include_str!("../recordings/smollm2.txt")).unwrap();
        let hindsight = Hindsight::of(&recording);
        let (mut expected, mut found, mut values, mut drafts) = (0.0, 0.0, 0.0, 0);
        for (index, transcript) in recording.transcripts.iter().enumerate() {
            for (at, draft) in transcript.iter().enumerate() {
                let survival = hindsight.survival(index, at);
                assert!(survival.len() == 3 && survival.is_sorted_by(|a, b| a >= b), "{survival:?}");
                expected += survival.iter().map(|&chance| f64::from(chance)).sum::<f64>();
                found += draft.matches as f64;
            }
            values += hindsight.value(index, 0.0) * transcript.len() as f64;
            drafts += transcript.len();
        }
        assert!((expected / found - 1.0).abs() < 0.03, "{expected} tokens expected, {found} accepted");
        assert!((values - expected).abs() < 1e-3 * expected, "{values} {expected} of {drafts} drafts");
        assert!(hindsight.value(0, 0.5) < hindsight.value(0, 0.0));
        assert_eq!(hindsight.value(0, 1.0), 0.0);
    }
}
