//! Transcripts and the target's keys and values of their tokens ("clean" tokens, in contrast to mask tokens),
//! computed once.

use candle_core::Tensor;

use crate::error::{Result, TuneError};
use crate::target::{CleanTokens, FrozenTarget};
use crate::transcripts::Transcript;

/// Transcripts with the target's keys and values of their tokens, which are kept as far as memory allows.
#[derive(Debug)]
pub struct Corpus {
    transcripts: Vec<Transcript>,
    kept: Vec<Option<CleanTokens>>,
    tail_layers: usize,
    /// Number of elements that may still be kept in memory.
    room: usize,
}

impl Corpus {
    /// Creates a corpus for a drafter of `tail_layers` layers; the keys and values that it keeps take at most `gib`
    /// GiB.
    pub fn new(transcripts: Vec<Transcript>, tail_layers: usize, gib: f64, target: &FrozenTarget) -> Self {
        let room = gib.max(0.0) * f64::from(1 << 30) / target.compute().size_in_bytes() as f64;
        let kept = vec![None; transcripts.len()];
        Self { transcripts, kept, tail_layers, room: room as usize }
    }

    /// Returns all transcripts, in the order in which they were given.
    pub fn transcripts(&self) -> &[Transcript] {
        &self.transcripts
    }

    /// Returns the target's hidden states, keys and values for the tokens of a transcript. The last token is
    /// excluded, because nothing is drafted after it.
    ///
    /// # Errors
    /// [`TuneError::Pick`] for an index out of range or an empty transcript; candle's errors: out of memory.
    pub fn clean(&mut self, target: &FrozenTarget, index: usize) -> Result<CleanTokens> {
        let transcript = transcript(&self.transcripts, index)?;
        if let Some(Some(clean)) = self.kept.get(index) {
            return Ok(clean.clone());
        }
        let tokens = transcript.tokens();
        if tokens.is_empty() {
            return Err(TuneError::Pick { transcript: index, reason: "it has no tokens".into() });
        }
        let clean = target.read(&tokens[..(tokens.len() - 1).max(1)], self.tail_layers)?;
        let elements: usize =
            clean.prefixes.iter().map(|prefix| prefix.k.elem_count() + prefix.v.elem_count()).sum();
        if let Some(place) = self.kept.get_mut(index).filter(|_| elements <= self.room) {
            self.room -= elements;
            *place = Some(clean.clone());
        }
        Ok(clean)
    }

    /// Returns the mean `[hidden]` of the hidden states that enter the target's last layers, where mask rows begin, over
    /// the first `count` transcripts.
    ///
    /// # Errors
    /// Candle's errors: out of memory.
    pub fn entry_mean(&mut self, target: &FrozenTarget, count: usize) -> Result<Tensor> {
        let mut sum: Option<Tensor> = None;
        let mut tokens = 0;
        for index in 0..count.min(self.transcripts.len()) {
            let clean = self.clean(target, index)?;
            tokens += self.transcripts[index].len().saturating_sub(1).max(1);
            sum = Some(match sum {
                None => clean.entry_sum,
                Some(sum) => (sum + clean.entry_sum)?,
            });
        }
        match sum {
            Some(sum) => Ok((sum / tokens as f64)?),
            None => Ok(Tensor::zeros(target.config().hidden_size, target.dtype(), target.device())?),
        }
    }
}

/// Returns the transcript with index `index`.
///
/// # Errors
/// [`TuneError::Pick`] if the index is out of range.
pub(super) fn transcript(transcripts: &[Transcript], index: usize) -> Result<&Transcript> {
    let reason = || format!("the index must be below {}, the number of transcripts", transcripts.len());
    transcripts.get(index).ok_or_else(|| TuneError::Pick { transcript: index, reason: reason() })
}
