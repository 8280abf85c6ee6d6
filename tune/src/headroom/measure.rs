//! Measures a drafter's headroom along greedy transcripts.

use std::fmt;

use flexdraft::decode::Confidence;
use flexdraft::model::weights::ChainKind;
use serde::{Deserialize, Serialize};

use super::back_off::BackOff;
use crate::chain::{ChainHeads, ChainSlots};
use crate::drafter::Drafter;
use crate::error::Result;
use crate::loss::{Prediction, predict};
use crate::shortlist::Shortlist;
use crate::target::FrozenTarget;
use crate::transcripts::Transcript;
use crate::tune::walk::{Walk, drafted_positions};
use crate::tune::{Batch, Corpus, Pick};

/// Number of anchors (positions of a transcript at which a draft begins) in one pass.
const ANCHORS: usize = 64;

/// K of a drafter without a chain: the number of ids per slot that a chain would score.
const TOP_K: usize = 16;

/// The share of the drafter's gain over plain decoding, τ − 1, above which the report says that counts alone explain
/// its τ.
const EXPLAINED: f64 = 0.8;

/// A drafter, and how it is measured.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// The drafter's target.
    pub target: &'a FrozenTarget,
    /// The drafter.
    pub drafter: &'a Drafter,
    /// The drafter's chain, if it has one.
    pub chain: Option<&'a ChainHeads>,
    /// The rule by which confidences decide the verify length.
    pub confidence: Confidence,
    /// Transcripts whose responses the back-off trigram counts; `None` counts the other transcripts that are walked.
    pub counted: Option<&'a [Transcript]>,
}

/// The acceptance lengths τ along greedy transcripts, and what bounds them. All acceptance lengths are `None` if there are
/// no steps.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Headroom {
    /// K: the number of most likely ids per slot that a chain chooses from.
    pub top_k: usize,
    /// τ of drafts whose slots are independent.
    pub tau: Option<f64>,
    /// τ with the drafter's chain; `None` for a drafter without one.
    pub chained_tau: Option<f64>,
    /// τ if each slot drafted the right token whenever it is among the slot's K most likely ids.
    pub oracle_tau: Option<f64>,
    /// The share of the distance from `tau` to `oracle_tau` that the chain covers.
    pub closed: Option<f64>,
    /// For slots 1, 2, …: the share of the transcripts' tokens that are among the slot's K most likely ids.
    pub recall: Vec<f64>,
    /// Calibration error of the confidences along the walk: the chain's if there is one, else the independent slots'.
    pub calibration_error: f64,
    /// τ of drafts by a back-off trigram that counts tokens.
    pub trigram_tau: Option<f64>,
}

impl Headroom {
    /// Returns the acceptance length of the drafter as it is, with its chain if it has one.
    pub fn own_tau(&self) -> Option<f64> {
        self.chained_tau.or(self.tau)
    }

    /// Returns whether the text is so repetitive that counted trigrams alone nearly reach the drafter's τ.
    pub fn is_explained_by_counts(&self) -> bool {
        let own = self.own_tau().zip(self.trigram_tau);
        own.is_some_and(|(tau, trigram)| trigram > 1.0 && trigram - 1.0 >= EXPLAINED * (tau - 1.0))
    }
}

/// Walks greedy transcripts with a drafter, with its chain, with an oracle that chooses among the most likely ids of
/// each slot, and with counts of trigrams. Returns the drafter's own walk (with its chain if it has one) and the
/// comparison.
///
/// # Errors
/// [`TuneError::Pick`](crate::TuneError::Pick) for a transcript without tokens; candle's errors: out of memory.
pub fn measure(source: Source<'_>, transcripts: &[Transcript]) -> Result<(Walk, Headroom)> {
    let Source { target, drafter, chain, confidence, counted } = source;
    let whole = Confidence { threshold: 0.0, ..confidence };
    let top_k = chain.map_or(TOP_K, |chain| chain.config().top_k).min(target.config().vocab_size);
    let slots = drafter.block_size() - 1;
    let mut corpus = Corpus::new(transcripts.to_vec(), drafter.tail_layers(), 0.0, target);
    let mut counts = BackOff::default();
    counted.unwrap_or(transcripts).iter().for_each(|transcript| counts.count(transcript, true));

    let [mut plain, mut chained, mut oracle, mut trigram] = [(); 4].map(|()| Walk::default());
    let mut recall = vec![(0usize, 0usize); slots];
    for (index, transcript) in transcripts.iter().enumerate() {
        let positions = drafted_positions(transcript);
        if positions.is_empty() {
            continue;
        }
        let drafts = Drafts::new(source, &mut corpus, index, top_k)?;
        plain.take_transcript(transcript, &drafts.plain, slots, &confidence);
        if chain.is_some() {
            chained.take_transcript(transcript, &drafts.chained, slots, &confidence);
        }
        let tokens = transcript.tokens();
        let mut right = drafts.plain;
        for (row, right) in right.iter_mut().enumerate() {
            let (anchor, slot) = (positions.start + row / slots.max(1), 1 + row % slots.max(1));
            let label = tokens.get(anchor + 1 + slot).copied();
            let found = label.filter(|label| drafts.likeliest[row * top_k..][..top_k].contains(label));
            *right = Prediction { loss: 0.0, token: found.unwrap_or(u32::MAX), confidence: 1.0 };
            recall[slot - 1].0 += usize::from(found.is_some());
            recall[slot - 1].1 += usize::from(label.is_some());
        }
        oracle.take_transcript(transcript, &right, slots, &whole);
        // A transcript is not counted for its own drafts.
        if counted.is_none() {
            counts.count(transcript, false);
        }
        let drafts: Vec<Prediction> =
            positions.flat_map(|anchor| counts.draft(tokens[anchor], tokens[anchor + 1], slots)).collect();
        trigram.take_transcript(transcript, &drafts, slots, &whole);
        if counted.is_none() {
            counts.count(transcript, true);
        }
    }
    let (tau, chained_tau, oracle_tau) = (plain.tau(), chained.tau(), oracle.tau());
    let closed = match (tau, chained_tau, oracle_tau) {
        (Some(tau), Some(chained), Some(oracle)) if oracle > tau => Some((chained - tau) / (oracle - tau)),
        _ => None,
    };
    let own = if chain.is_some() { chained } else { plain };
    let headroom = Headroom {
        top_k,
        tau,
        chained_tau,
        oracle_tau,
        closed,
        recall: recall.iter().map(|&(found, all)| found as f64 / all.max(1) as f64).collect(),
        calibration_error: own.calibration.error(),
        trigram_tau: trigram.tau(),
    };
    Ok((own, headroom))
}

/// The drafts after all positions of a transcript, slot by slot.
struct Drafts {
    plain: Vec<Prediction>,
    /// Empty if the drafter has no chain.
    chained: Vec<Prediction>,
    /// The K most likely ids of each slot.
    likeliest: Vec<u32>,
}

impl Drafts {
    fn new(source: Source<'_>, corpus: &mut Corpus, transcript: usize, top_k: usize) -> Result<Self> {
        let Source { target, drafter, chain, .. } = source;
        let shortlist = Shortlist::All(target.config().vocab_size);
        let keeps_hidden = chain.is_some_and(|chain| chain.config().kind == ChainKind::Hidden);
        let clean = corpus.clean(target, transcript)?;
        let positions: Vec<usize> = drafted_positions(&corpus.transcripts()[transcript]).collect();
        let mut drafts = Self { plain: Vec::new(), chained: Vec::new(), likeliest: Vec::new() };
        for anchors in positions.chunks(ANCHORS) {
            let pick = Pick { transcript, anchors: anchors.to_vec() };
            let batch = Batch::of_clean(corpus.transcripts(), pick, clean.clone())?;
            let rows = batch.rows(drafter.block_size());
            let forward = drafter.forward(target, &rows)?;
            let (head, calibration) = drafter.factors(&forward);
            let factors: Vec<_> = std::iter::once(head).chain(calibration).collect();
            drafts.plain.extend(predict(&factors)?);
            let slots = ChainSlots::new(drafter, &forward, &rows.bonuses, &shortlist, top_k, keeps_hidden)?;
            if let Some(chain) = chain {
                drafts.chained.extend(chain.draft(target, &slots)?);
            }
            drafts.likeliest.extend(slots.likeliest.ids);
        }
        Ok(drafts)
    }
}

impl fmt::Display for Headroom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |tau: Option<f64>| tau.map_or_else(|| "none".to_owned(), |tau| format!("{tau:.3}"));
        let k = self.top_k;
        let without =
            if self.chained_tau.is_some() { "τ without the chain" } else { "τ, slots independent" };
        writeln!(f, "{without:<25}{:>8}", number(self.tau))?;
        if self.chained_tau.is_some() {
            writeln!(f, "{:<25}{:>8}", "τ with the chain", number(self.chained_tau))?;
        }
        writeln!(f, "{:<25}{:>8}", format!("oracle's τ at {k}"), number(self.oracle_tau))?;
        if let Some(closed) = self.closed {
            writeln!(f, "{:<25}{:>7.0}%", "headroom closed", 100.0 * closed)?;
        }
        writeln!(f, "{:<25}{:>8.3}", "calibration error", self.calibration_error)?;
        writeln!(f, "{:<25}{:>8}", "back-off trigram's τ", number(self.trigram_tau))?;
        let recall: Vec<String> = self.recall.iter().map(|recall| format!("{recall:.3}")).collect();
        writeln!(f, "{:<25}  {}", format!("recall at {k}, by slot"), recall.join(" "))?;
        if self.is_explained_by_counts() {
            writeln!(f, "warning: the text is so repetitive that counted trigrams explain most of τ")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repetitive_text_is_named() {
        let measured = |tau, chained_tau, trigram_tau| {
            let headroom = Headroom { tau, chained_tau, trigram_tau, ..Headroom::default() };
            (headroom.is_explained_by_counts(), headroom.to_string().contains("warning: the text"))
        };
        assert_eq!(measured(Some(2.0), None, Some(1.9)), (true, true));
        assert_eq!(measured(Some(2.0), None, Some(1.7)), (false, false));
        // With a chain, the chain's τ counts.
        assert_eq!(measured(Some(2.0), Some(3.0), Some(1.9)), (false, false));
        assert_eq!(measured(Some(1.0), None, Some(1.0)), (false, false));
        assert_eq!(measured(None, None, None), (false, false));
    }
}
