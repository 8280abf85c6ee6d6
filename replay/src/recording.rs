//! Recordings: the confidences and the match length of the draft at every position of greedy transcripts.
//!
//! The match length of a draft is the number of its leading tokens that equal the transcript: what greedy verification
//! of the whole draft accepts. The accepted draft tokens are therefore the transcript's own tokens, and a recording does
//! not repeat them.
//!
//! A recording is text. The first line names the pair and the block size. A line with two hexadecimal digits for the match
//! length and two for each confidence (in 255ths) is a position; an empty line ends a transcript.

use std::fmt::Write;

/// The draft at one position.
#[derive(Clone, Debug, PartialEq)]
pub struct Draft {
    /// Number of leading draft tokens that equal the transcript.
    pub matches: usize,
    /// The drafter's confidence in each token `[S − 1]`.
    pub confidence: Vec<f32>,
}

/// The drafts at all positions of some transcripts.
#[derive(Clone, Debug, PartialEq)]
pub struct Recording {
    /// The name of the target and its drafter.
    pub pair: String,
    /// S: the drafter's block size.
    pub block_size: usize,
    /// The drafts of each transcript, by position.
    pub transcripts: Vec<Vec<Draft>>,
}

impl Recording {
    /// Reads a recording from its text.
    ///
    /// # Errors
    ///
    /// An error names the line that is invalid.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut lines = text.lines().enumerate();
        let (_, first) = lines.next().ok_or("an empty recording: expected the pair and the block size")?;
        let (pair, block_size) =
            first.rsplit_once(' ').ok_or("line 1: expected the pair and the block size")?;
        let block_size: usize = block_size.parse().map_err(|_| "line 1: expected a block size".to_owned())?;
        let mut transcripts = vec![Vec::new()];
        for (number, line) in lines {
            if line.is_empty() {
                transcripts.push(Vec::new());
                continue;
            }
            let bytes = bytes(line).filter(|bytes| bytes.len() == block_size);
            let bytes = bytes
                .ok_or_else(|| format!("line {}: expected {block_size} bytes in hexadecimal", number + 1))?;
            let confidence = bytes[1..].iter().map(|&byte| f32::from(byte) / 255.0).collect();
            if let Some(last) = transcripts.last_mut() {
                last.push(Draft { matches: usize::from(bytes[0]), confidence });
            }
        }
        transcripts.retain(|transcript| !transcript.is_empty());
        Ok(Self { pair: pair.to_owned(), block_size, transcripts })
    }

    /// Returns the recording's text.
    pub fn text(&self) -> String {
        let mut text = format!("{} {}\n", self.pair, self.block_size);
        for transcript in &self.transcripts {
            for draft in transcript {
                let confidences =
                    draft.confidence.iter().map(|confidence| (confidence * 255.0).round() as u8);
                for byte in [draft.matches.min(255) as u8].into_iter().chain(confidences) {
                    // Writing to a string cannot fail.
                    let _ = write!(text, "{byte:02x}");
                }
                text.push('\n');
            }
            text.push('\n');
        }
        text
    }

    /// Returns the acceptance length τ of a walk that verifies all tokens of every draft.
    pub fn acceptance_length(&self) -> f64 {
        let (mut steps, mut tokens) = (0, 0);
        for transcript in &self.transcripts {
            let mut at = 0;
            while let Some(draft) = transcript.get(at) {
                steps += 1;
                tokens += draft.matches + 1;
                at += draft.matches + 1;
            }
        }
        tokens as f64 / f64::from(steps.max(1))
    }

    /// Returns a recording with longer or shorter matches: each draft token after the first matches, given that the
    /// tokens before it did, with a probability that is shifted to reach approximately the acceptance length `tau`. The
    /// confidences are shifted with the probability. Such a recording stands for a drafter that is not available.
    #[must_use]
    pub fn with_acceptance_length(&self, tau: f64, seed: u64) -> Self {
        let made = |shift: f64| {
            let mut random = Random(seed);
            let mut made = self.clone();
            for draft in made.transcripts.iter_mut().flatten() {
                for confidence in &mut draft.confidence {
                    let c = f64::from(*confidence).clamp(0.004, 0.996);
                    *confidence = (1.0 / (1.0 + (1.0 / c - 1.0) * (-shift).exp())) as f32;
                }
                let confident = draft.confidence.iter();
                draft.matches = confident.take_while(|&&c| random.uniform() < f64::from(c)).count();
            }
            made
        };
        let (mut low, mut high) = (-12.0, 12.0);
        for _ in 0..30 {
            let middle = (low + high) / 2.0;
            if made(middle).acceptance_length() < tau { low = middle } else { high = middle }
        }
        made(high)
    }
}

/// Returns the bytes of hexadecimal digits.
fn bytes(line: &str) -> Option<Vec<u8>> {
    let pair = |at| u8::from_str_radix(line.get(at..at + 2)?, 16).ok();
    (0..line.len()).step_by(2).map(pair).collect()
}

/// A small generator of random numbers, the same on every machine.
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    /// Returns a uniform number in [0, 1).
    pub fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Returns a number from 0 to `limit` − 1.
    pub fn below(&mut self, limit: usize) -> usize {
        ((self.uniform() * limit as f64) as usize).min(limit.saturating_sub(1))
    }
}
