//! Draws draft tokens, and applies the acceptance rules to rows of logits.

use std::ops::Range;

use super::buffer::CpuBuffer;
use super::check;
use super::pool::Pool;
use super::rows::{ArgMax, ConfidenceKernel};
use super::simd::Vectors;
use crate::acceptance::{self, Rows, Rule};
use crate::device::{DeviceError, DraftRows, DraftToken, SequenceVerdict, SlotRows, StepResults, VerifyRows};
use crate::layout::MAX_BLOCK_SIZE;
use crate::random::{Purpose, Stream};
use crate::sampling::{SamplingParams, draw, draw_weighted, softmax, warp};

/// Cost of a row of logits in multiply-adds per id: only small vocabularies stay on one thread.
const WORK: usize = 8;

/// The results of a verification, and the inputs of the drafts that follow it.
#[derive(Clone, Debug, Default)]
pub struct CpuResults {
    /// The verdicts and drafts that a step's `read` returns.
    pub found: StepResults,
    /// Number of rows drafted since the verification.
    pub(super) drafted: usize,
    /// The selected slots and bonus tokens, one entry per draft.
    selected: Vec<DraftSources>,
}

/// The slots and the bonus token that a verdict selects for a draft.
#[derive(Clone, Debug)]
struct DraftSources {
    /// Rows of slots 1..S in the pass or in the logits.
    sources: Range<usize>,
    /// Rows of the slots' logits.
    logits: Range<usize>,
    bonus: u32,
}

impl CpuResults {
    /// Selects the slots and bonus tokens of `drafts`.
    pub(super) fn select_drafts(
        &mut self,
        drafts: &[DraftRows<'_>],
        rows: SlotRows,
    ) -> Result<(), DeviceError> {
        const OPERATION: &str = "select_drafts";
        self.selected.clear();
        let mut next = rows;
        for draft in drafts {
            let verdict = self.verdict(OPERATION, draft)?;
            check::index(OPERATION, "number of slots", draft.slots, MAX_BLOCK_SIZE + 1)?;
            let sources = draft.slot_rows(verdict.accepted, rows).ok_or(DeviceError::OutOfRange {
                operation: OPERATION,
                what: "accepted length without a group",
                index: verdict.accepted,
                limit: 0,
            })?;
            let logits = match &mut next {
                SlotRows::Logits => sources.clone(),
                SlotRows::Pass { first_logits } => {
                    let first = *first_logits;
                    *first_logits = first.saturating_add(sources.len());
                    first..*first_logits
                }
            };
            self.selected.push(DraftSources { sources, logits, bonus: verdict.bonus });
        }
        Ok(())
    }

    /// Returns the rows of the selected slots.
    pub(super) fn source_rows(&self) -> Vec<usize> {
        self.selected.iter().flat_map(|draft| draft.sources.clone()).collect()
    }

    /// Returns the bonus tokens of the selected drafts.
    pub(super) fn bonus(&self) -> Vec<u32> {
        self.selected.iter().map(|draft| draft.bonus).collect()
    }

    fn verdict(
        &self,
        operation: &'static str,
        draft: &DraftRows<'_>,
    ) -> Result<SequenceVerdict, DeviceError> {
        let (index, limit) = (draft.sequence, self.found.verdicts.len());
        let verdict = self.found.verdicts.get(index).copied();
        verdict.ok_or(DeviceError::OutOfRange { operation, what: "sequence", index, limit })
    }

    /// Returns the logits rows of the selected `drafts`, with their sampling parameters.
    pub(super) fn slots<'a>(&self, drafts: &[DraftRows<'a>]) -> Result<Vec<Slots<'a>>, DeviceError> {
        const OPERATION: &str = "draft";
        let selected: Vec<usize> = self.selected.iter().map(|draft| draft.logits.len()).collect();
        let found: Vec<usize> = drafts.iter().map(DraftRows::drafted).collect();
        check::shape(OPERATION, "drafts", &selected, &found)?;
        let slots = |(draft, selected): (&DraftRows<'a>, &DraftSources)| {
            let start = self.verdict(OPERATION, draft)?.next_start;
            let rows = selected.logits.clone();
            Ok(Slots { rows, sampling: draft.sampling, rule: draft.rule, seed: draft.seed, start })
        };
        drafts.iter().zip(&self.selected).map(slots).collect()
    }
}

/// Rows of logits to be sampled: slots 1, 2, … of one group.
#[derive(Clone, Debug)]
pub(super) struct Slots<'a> {
    pub(super) rows: Range<usize>,
    pub(super) sampling: &'a SamplingParams,
    pub(super) rule: Rule,
    pub(super) seed: u64,
    /// Position of c_0 of the step that will verify the draft; slot j has position `start + j`.
    pub(super) start: usize,
}

/// Samples drafts: a token and a confidence for each row.
pub(super) fn draft(
    (pool, vectors): (&Pool, Vectors),
    logits: &CpuBuffer,
    drafts: &[Slots<'_>],
) -> Result<Vec<Vec<DraftToken>>, DeviceError> {
    const OPERATION: &str = "draft";
    check_vocabulary(OPERATION, logits)?;
    for draft in drafts {
        check::rows(OPERATION, draft.rows.clone(), &[logits])?;
        check_positions(OPERATION, draft.start, draft.rows.len())?;
    }
    let nothing = DraftToken { token: 0, confidence: 0.0 };
    let mut tokens: Vec<_> = drafts.iter().map(|draft| vec![nothing; draft.rows.len()]).collect();
    let mut items = Vec::new();
    for (draft, tokens) in drafts.iter().zip(&mut tokens) {
        let rows = logits.rows_in(draft.rows.start..draft.rows.start + tokens.len());
        items.extend((1..).zip(rows).zip(tokens).map(|((slot, row), token)| (draft, slot, row, token)));
    }
    let work = items.len() * logits.cols() * WORK;
    pool.for_each(items, work, |(draft, slot, row, token)| {
        let drawn = if draft.sampling.is_greedy() {
            vectors.run(ArgMax(row))
        } else {
            let stream = match draft.rule {
                Rule::Match => Stream::target_draw(draft.seed, draft.start + slot),
                Rule::Rejection | Rule::Block => {
                    Stream::new(draft.seed, Purpose::DraftDraw, slot, draft.start)
                }
            };
            draw(&warp(row, draft.sampling), stream)
        };
        *token = DraftToken { token: drawn, confidence: vectors.run(ConfidenceKernel(row)) };
    });
    Ok(tokens)
}

/// Applies each sequence's acceptance rule.
pub(super) fn verify(
    (pool, vectors): (&Pool, Vectors),
    logits: &CpuBuffer,
    sequences: &[VerifyRows<'_, CpuBuffer>],
) -> Result<Vec<SequenceVerdict>, DeviceError> {
    for request in sequences {
        check_verification(logits, request)?;
    }
    let mut verdicts = vec![SequenceVerdict { accepted: 0, bonus: 0, next_start: 0 }; sequences.len()];
    let rows: usize = sequences.iter().map(|request| request.draft.len() + 1).sum();
    let items = sequences.iter().zip(&mut verdicts).collect();
    pool.for_each(items, rows.saturating_mul(logits.cols()).saturating_mul(WORK), |(request, verdict)| {
        *verdict = verify_sequence(vectors, logits, request);
    });
    Ok(verdicts)
}

/// Checks that every row of a verification exists.
fn check_verification(logits: &CpuBuffer, request: &VerifyRows<'_, CpuBuffer>) -> Result<(), DeviceError> {
    const OPERATION: &str = "verify";
    check_vocabulary(OPERATION, logits)?;
    let verify_len = request.draft.len();
    check::index(OPERATION, "row", request.first_row.saturating_add(verify_len), logits.rows())?;
    check_positions(OPERATION, request.start, verify_len + 1)?;
    if let Some(draft_logits) = request.draft_logits.filter(|_| verify_len > 0) {
        let rows = draft_logits.first_row.saturating_add(verify_len);
        check::at_least(OPERATION, "draft_logits", draft_logits.logits, rows, logits.cols())?;
    }
    Ok(())
}

/// Checks that the vocabulary is not empty.
fn check_vocabulary(operation: &'static str, logits: &CpuBuffer) -> Result<(), DeviceError> {
    check::cols(operation, "logits", logits, logits.cols().max(1))
}

/// Checks that `count` positions after `start` do not overflow.
fn check_positions(operation: &'static str, start: usize, count: usize) -> Result<(), DeviceError> {
    check::index(operation, "position", start.saturating_add(count), usize::MAX)
}

/// Applies one sequence's acceptance rule.
fn verify_sequence(
    vectors: Vectors,
    logits: &CpuBuffer,
    request: &VerifyRows<'_, CpuBuffer>,
) -> SequenceVerdict {
    let mut rows = WarpedRows { logits, request };
    let (accepted, bonus) = if request.sampling.is_greedy() {
        acceptance::matching_prefix(request.draft, |i| vectors.run(ArgMax(rows.target_logits(i))))
    } else if request.rule == Rule::Match || request.draft.is_empty() {
        acceptance::matching_prefix(request.draft, |i| {
            let stream = Stream::target_draw(request.seed, request.start + i + 1);
            draw(&warp(rows.target_logits(i), request.sampling), stream)
        })
    } else {
        let uniform =
            |slot| Stream::new(request.seed, Purpose::AcceptanceUniform, slot, request.start).uniform();
        let decision = match request.rule {
            Rule::Block => acceptance::block(request.draft, &mut rows, uniform),
            _ => acceptance::rejection(request.draft, &mut rows, uniform),
        };
        let stream = Stream::new(request.seed, Purpose::ResidualDraw, decision.accepted, request.start);
        (decision.accepted, draw_weighted(&decision.weights, stream))
    };
    SequenceVerdict { accepted, bonus, next_start: request.start + accepted + 1 }
}

/// p and q of one verification, warped when a rule asks for them. Their rows were checked to exist.
struct WarpedRows<'a> {
    logits: &'a CpuBuffer,
    request: &'a VerifyRows<'a, CpuBuffer>,
}

impl WarpedRows<'_> {
    fn target_logits(&self, i: usize) -> &[f32] {
        self.logits.row(self.request.first_row + i).unwrap_or(&[])
    }
}

impl Rows for WarpedRows<'_> {
    fn target(&mut self, i: usize) -> Vec<f64> {
        softmax(&warp(self.target_logits(i), self.request.sampling))
    }

    fn draft(&mut self, j: usize) -> Vec<f64> {
        match self.request.draft_logits.and_then(|draft| draft.logits.row(draft.first_row + j - 1)) {
            Some(row) => softmax(&warp(row, self.request.sampling)),
            None => {
                let mut point_mass = vec![0.0; self.logits.cols()];
                let token = self.request.draft.get(j - 1).map(|&token| token as usize);
                if let Some(mass) = token.and_then(|token| point_mass.get_mut(token)) {
                    *mass = 1.0;
                }
                point_mass
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{DraftLogits, Precision};

    fn logits(rows: usize, cols: usize) -> CpuBuffer {
        let mut buffer = CpuBuffer::new(cols, Precision::F32);
        buffer.resize(rows).unwrap();
        for (row, values) in buffer.rows_in_mut(0..rows).enumerate() {
            values.iter_mut().enumerate().for_each(|(id, x)| *x = ((row * 7 + id * 5) % 11) as f32);
        }
        buffer
    }

    const SAMPLINGS: [SamplingParams; 2] =
        [SamplingParams::GREEDY, SamplingParams { temperature: 0.7, top_k: 0, top_p: 1.0, min_p: 0.0 }];

    fn draft_rows(sampling: &SamplingParams, rows: Range<usize>, start: usize) -> Slots<'_> {
        Slots { rows, sampling, rule: Rule::Rejection, seed: 3, start }
    }

    fn verify_rows<'a>(
        sampling: &'a SamplingParams,
        first_row: usize,
        draft: &'a [u32],
        draft_logits: Option<&'a CpuBuffer>,
    ) -> VerifyRows<'a, CpuBuffer> {
        let draft_logits = draft_logits.map(|logits| DraftLogits { logits, first_row: 0, first_draw: 0 });
        VerifyRows { first_row, draft, draft_logits, sampling, rule: Rule::Block, seed: 3, start: 5 }
    }

    #[test]
    fn threads_and_other_drafts_change_nothing() {
        let logits = logits(40, 3000);
        for sampling in &SAMPLINGS {
            let drafts = [
                draft_rows(sampling, 0..7, 4),
                draft_rows(sampling, 9..9, 4),
                draft_rows(sampling, 5..40, 9),
            ];
            let run = |threads, drafts: &[Slots<'_>]| {
                draft((&Pool::new(threads).unwrap(), Vectors::fastest()), &logits, drafts).unwrap()
            };
            let expected = run(1, &drafts);
            assert_eq!(expected.iter().map(Vec::len).collect::<Vec<_>>(), [7, 0, 35]);
            assert_eq!(run(3, &drafts), expected);
            for (draft, expected) in drafts.iter().zip(&expected) {
                assert_eq!(&run(2, std::slice::from_ref(draft))[0], expected);
            }
            let tokens: Vec<Vec<u32>> =
                expected.iter().map(|tokens| tokens.iter().map(|t| t.token).collect()).collect();
            let requests: Vec<_> =
                tokens.iter().map(|tokens| verify_rows(sampling, 1, tokens, Some(&logits))).collect();
            let run = |threads, requests: &[VerifyRows<'_, CpuBuffer>]| {
                verify((&Pool::new(threads).unwrap(), Vectors::fastest()), &logits, requests).unwrap()
            };
            let expected = run(1, &requests);
            assert_eq!(run(3, &requests), expected);
            for (request, expected) in requests.iter().zip(&expected) {
                assert_eq!(&run(2, std::slice::from_ref(request))[0], expected);
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let pool = Pool::new(1).unwrap();
        let compute = (&pool, Vectors::fastest());
        let (four, empty, narrow, short) = (logits(4, 6), logits(4, 0), logits(4, 5), logits(2, 6));
        for sampling in &SAMPLINGS {
            let draft = |logits: &CpuBuffer, rows, start| {
                draft(compute, logits, &[draft_rows(sampling, rows, start)]).map_err(|e| e.to_string())
            };
            assert_eq!(draft(&four, 2..5, 0).unwrap_err(), "draft: row 4 is out of range, the limit is 4");
            assert_eq!(
                draft(&empty, 0..1, 0).unwrap_err(),
                "draft: logits has shape [4, 0], expected [4, 1]"
            );
            assert!(draft(&four, 0..4, usize::MAX - 3).unwrap_err().starts_with("draft: position"));
            assert_eq!(draft(&four, 4..4, 0), Ok(vec![vec![]]));
            assert_eq!(draft(&four, 0..4, usize::MAX - 9).unwrap()[0].len(), 4);

            let verify = |logits: &CpuBuffer, request| {
                verify(compute, logits, &[request]).map(|v| v.len()).map_err(|e| e.to_string())
            };
            let request =
                |first_row, draft, draft_logits| verify_rows(sampling, first_row, draft, draft_logits);
            assert_eq!(verify(&four, request(2, &[1], None)), Ok(1));
            assert_eq!(
                verify(&four, request(2, &[1, 2], None)).unwrap_err(),
                "verify: row 4 is out of range, the limit is 4"
            );
            assert!(verify(&four, request(usize::MAX, &[1, 2], None)).is_err());
            assert_eq!(
                verify(&four, request(0, &[1, 2], Some(&narrow))).unwrap_err(),
                "verify: draft_logits has shape [4, 5], expected [4, 6]"
            );
            assert_eq!(
                verify(&four, request(0, &[1, 2, 3], Some(&short))).unwrap_err(),
                "verify: draft_logits has shape [2, 6], expected [3, 6]"
            );
            assert_eq!(
                verify(&empty, request(0, &[], None)).unwrap_err(),
                "verify: logits has shape [4, 0], expected [4, 1]"
            );
            let late = VerifyRows { start: usize::MAX - 2, ..request(0, &[1, 2], None) };
            assert!(verify(&four, late).unwrap_err().starts_with("verify: position"));
            // A token outside the vocabulary has probability 0 in both distributions.
            assert_eq!(verify(&four, request(0, &[6, u32::MAX], Some(&four))), Ok(1));
            assert_eq!(verify(&four, request(0, &[6, u32::MAX], None)), Ok(1));
        }
    }
}
