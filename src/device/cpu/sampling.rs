//! Draws draft tokens from rows of logits.

use std::ops::Range;

use super::buffer::CpuBuffer;
use super::check;
use super::pool::Pool;
use super::rows::{ArgMax, ConfidenceKernel, WORK};
use super::simd::Vectors;
use crate::acceptance::Rule;
use crate::device::{DeviceError, DraftToken};
use crate::random::{Purpose, Stream};
use crate::sampling::{SamplingParams, draw, warp};

/// Rows of logits to be sampled: the rows of draft tokens 1, 2, … of one sequence.
#[derive(Clone, Debug)]
pub(super) struct Slots<'a> {
    pub(super) rows: Range<usize>,
    pub(super) sampling: &'a SamplingParams,
    pub(super) rule: Rule,
    pub(super) seed: u64,
    /// Position of the bonus token, which comes before the draft and is the first candidate of the step that
    /// verifies the draft. Draft token j has position `start + j`.
    pub(super) start: usize,
}

/// Samples drafts: a token and a confidence for each row.
pub(super) fn draft(
    (pool, vectors): (&Pool, Vectors),
    logits: &CpuBuffer,
    drafts: &[Slots<'_>],
) -> Result<Vec<Vec<DraftToken>>, DeviceError> {
    check_slots(logits, drafts)?;
    let nothing = DraftToken { token: 0, confidence: 0.0 };
    let mut tokens: Vec<_> = drafts.iter().map(|draft| vec![nothing; draft.rows.len()]).collect();
    let mut items = Vec::new();
    for (draft, tokens) in drafts.iter().zip(&mut tokens) {
        let rows = logits.rows_in(draft.rows.start..draft.rows.start + tokens.len());
        items.extend((1..).zip(rows).zip(tokens).map(|((slot, row), token)| (draft, slot, row, token)));
    }
    let work = items.len() * logits.cols() * WORK;
    pool.for_each(items, work, |(draft, slot, row, token)| {
        *token = draw_slot(vectors, draft, slot, row);
    });
    Ok(tokens)
}

/// Checks that the rows of all drafts are rows of `logits`, and that their positions are in range.
pub(super) fn check_slots(logits: &CpuBuffer, drafts: &[Slots<'_>]) -> Result<(), DeviceError> {
    const OPERATION: &str = "draft";
    check::vocabulary(OPERATION, logits)?;
    for draft in drafts {
        check::rows(OPERATION, draft.rows.clone(), &[logits])?;
        check::positions(OPERATION, draft.start, draft.rows.len())?;
    }
    Ok(())
}

/// Samples slot `slot` of a draft, counted from 1, from its row of logits.
pub(super) fn draw_slot(vectors: Vectors, draft: &Slots<'_>, slot: usize, row: &[f32]) -> DraftToken {
    let token = if draft.sampling.is_greedy() {
        vectors.run(ArgMax(row))
    } else {
        let stream = match draft.rule {
            Rule::Match => Stream::target_draw(draft.seed, draft.start + slot),
            Rule::Rejection | Rule::Block => Stream::new(draft.seed, Purpose::DraftDraw, slot, draft.start),
        };
        draw(&warp(row, draft.sampling), stream)
    };
    DraftToken { token, confidence: vectors.run(ConfidenceKernel(row)) }
}

#[cfg(test)]
mod tests {
    use super::super::verify::verify;
    use super::*;
    use crate::device::{DraftLogits, Precision, VerifyRows};

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
        let draft_logits =
            draft_logits.map(|logits| DraftLogits { logits, first_row: 0, first_draw: 0, is_warped: false });
        VerifyRows {
            first_row,
            draft,
            draft_logits,
            edits: None,
            sampling,
            rule: Rule::Block,
            seed: 3,
            start: 5,
        }
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
            // A token outside the vocabulary has probability 0 in the target's and in the draft's
            // distribution.
            assert_eq!(verify(&four, request(0, &[6, u32::MAX], Some(&four))), Ok(1));
            assert_eq!(verify(&four, request(0, &[6, u32::MAX], None)), Ok(1));
        }
    }
}
