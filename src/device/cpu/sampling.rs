//! Drawing drafts, and applying the acceptance rules to rows of logits.

use super::buffer::Buffer;
use super::check;
use super::pool::Pool;
use super::rows::{ArgMax, Confidence};
use super::simd::Vectors;
use crate::acceptance::{self, Rows, Rule};
use crate::device::{DeviceError, DraftRows, DraftToken, Verdict, VerifyRows};
use crate::random::{Purpose, Stream};
use crate::sampling::{draw, draw_weighted, softmax, warp};

/// What a row of logits costs in multiply-adds an id, so that only small vocabularies stay on one thread.
const WORK: usize = 8;

/// Samples drafts: a token and a confidence for each of their rows.
pub(super) fn draft(
    (pool, vectors): (&Pool, Vectors),
    logits: &Buffer,
    drafts: &[DraftRows<'_>],
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
        *token = DraftToken { token: drawn, confidence: vectors.run(Confidence(row)) };
    });
    Ok(tokens)
}

/// Applies each sequence's acceptance rule.
pub(super) fn verify(
    (pool, vectors): (&Pool, Vectors),
    logits: &Buffer,
    sequences: &[VerifyRows<'_, Buffer>],
) -> Result<Vec<Verdict>, DeviceError> {
    for request in sequences {
        check_verification(logits, request)?;
    }
    let mut verdicts = vec![Verdict { accepted: 0, bonus: 0 }; sequences.len()];
    let rows: usize = sequences.iter().map(|request| request.draft.len() + 1).sum();
    let items = sequences.iter().zip(&mut verdicts).collect();
    pool.for_each(items, rows.saturating_mul(logits.cols()).saturating_mul(WORK), |(request, verdict)| {
        *verdict = verify_sequence(vectors, logits, request);
    });
    Ok(verdicts)
}

/// That every row of a verification exists.
fn check_verification(logits: &Buffer, request: &VerifyRows<'_, Buffer>) -> Result<(), DeviceError> {
    const OPERATION: &str = "verify";
    check_vocabulary(OPERATION, logits)?;
    let verify_len = request.draft.len();
    check::index(OPERATION, "row", request.first_row.saturating_add(verify_len), logits.rows())?;
    check_positions(OPERATION, request.start, verify_len + 1)?;
    if let Some(draft_logits) = request.draft_logits.filter(|_| verify_len > 0) {
        check::at_least(OPERATION, "draft_logits", draft_logits, verify_len, logits.cols())?;
    }
    Ok(())
}

/// That there is an id to choose.
fn check_vocabulary(operation: &'static str, logits: &Buffer) -> Result<(), DeviceError> {
    check::cols(operation, "logits", logits, logits.cols().max(1))
}

/// That `count` positions after `start` can be counted.
fn check_positions(operation: &'static str, start: usize, count: usize) -> Result<(), DeviceError> {
    check::index(operation, "position", start.saturating_add(count), usize::MAX)
}

/// Applies one sequence's acceptance rule.
fn verify_sequence(vectors: Vectors, logits: &Buffer, request: &VerifyRows<'_, Buffer>) -> Verdict {
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
    Verdict { accepted, bonus }
}

/// p and q of one verification, warped when a rule asks for them. Rows were checked to exist.
struct WarpedRows<'a> {
    logits: &'a Buffer,
    request: &'a VerifyRows<'a, Buffer>,
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
        match self.request.draft_logits.and_then(|logits| logits.row(j - 1)) {
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
