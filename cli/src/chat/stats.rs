//! Statistics of the answers in a conversation: tokens, steps and times.

use crate::run::{Sample, mean};

/// Sums of tokens, steps and seconds over a number of answers.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stats {
    answers: usize,
    tokens: usize,
    decoded_tokens: usize,
    steps: usize,
    /// Number of accepted draft tokens plus one bonus token per step, before the output was cut at its end.
    committed: usize,
    prompt_tokens: usize,
    /// Number of prompt tokens that were not read, because the cache had their keys and values.
    reused_tokens: u64,
    prefill_seconds: f64,
    decode_seconds: f64,
}

impl Stats {
    /// Returns the statistics of one answer, to a prompt of `prompt_tokens` tokens; `reused_tokens` of these came from the
    /// cache.
    pub fn of(answer: &Sample, prompt_tokens: usize, reused_tokens: u64) -> Self {
        Self {
            answers: 1,
            tokens: answer.output_ids.len(),
            decoded_tokens: answer.decoded_tokens(),
            steps: answer.steps.len(),
            committed: answer.steps.iter().map(|step| step.accepted + 1).sum(),
            prompt_tokens,
            reused_tokens,
            prefill_seconds: answer.prefill_seconds,
            decode_seconds: answer.decode_seconds,
        }
    }

    pub fn add(&mut self, other: &Self) {
        self.answers += other.answers;
        self.tokens += other.tokens;
        self.decoded_tokens += other.decoded_tokens;
        self.steps += other.steps;
        self.committed += other.committed;
        self.prompt_tokens += other.prompt_tokens;
        self.reused_tokens += other.reused_tokens;
        self.prefill_seconds += other.prefill_seconds;
        self.decode_seconds += other.decode_seconds;
    }

    /// Returns the statistics as one line of text.
    pub fn line(&self) -> String {
        let speed = match self.decode_seconds > 0.0 {
            true => self.decoded_tokens as f64 / self.decode_seconds,
            false => 0.0,
        };
        format!(
            "{} tokens in {} steps, acceptance length {:.2}, {speed:.1} tokens/s; {} prompt tokens ready in {:.2} s, {} of \
             them from the cache",
            self.tokens,
            self.steps,
            self.acceptance_length(),
            self.prompt_tokens,
            self.prefill_seconds,
            self.reused_tokens,
        )
    }

    /// Returns the acceptance length over all steps; 0 if there are none.
    pub fn acceptance_length(&self) -> f64 {
        mean(self.committed, self.steps)
    }

    pub fn steps(&self) -> usize {
        self.steps
    }

    pub fn answers(&self) -> usize {
        self.answers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_add_up() {
        let answer = Sample {
            output_ids: vec![1; 5],
            prefill_seconds: 0.25,
            decode_seconds: 2.0,
            ..Sample::new(0, 0)
        };
        let mut stats = Stats::of(&answer, 7, 0);
        stats.add(&Stats::of(&answer, 9, 5));
        assert_eq!(stats.answers(), 2);
        assert_eq!(
            stats.line(),
            "10 tokens in 0 steps, acceptance length 0.00, 2.0 tokens/s; 16 prompt tokens ready in 0.50 s, \
             5 of them from the cache"
        );
    }
}
