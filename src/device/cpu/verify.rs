//! Applies the acceptance rules to rows of logits.

use std::borrow::Cow;

use super::buffer::CpuBuffer;
use super::check;
use super::pool::Pool;
use super::rows::{ArgMax, WORK};
use super::simd::Vectors;
use crate::acceptance::{self, Rows, Rule};
use crate::device::{DeviceError, DraftLogits, SequenceVerdict, VerifyRows};
use crate::logits::LogitsFault;
use crate::random::{Purpose, Stream};
use crate::sampling::{draw, draw_weighted, softmax, warp};

/// Applies each sequence's acceptance rule.
pub(super) fn verify(
    (pool, vectors): (&Pool, Vectors),
    logits: &CpuBuffer,
    sequences: &[VerifyRows<'_, CpuBuffer>],
) -> Result<Vec<SequenceVerdict>, DeviceError> {
    for request in sequences {
        check_verification(logits, request)?;
    }
    let mut verdicts =
        vec![SequenceVerdict { accepted: 0, bonus: 0, next_start: 0, fault: None }; sequences.len()];
    let rows: usize = sequences.iter().map(|request| request.draft.len() + 1).sum();
    let items = sequences.iter().zip(&mut verdicts).collect();
    pool.for_each(items, rows.saturating_mul(logits.cols()).saturating_mul(WORK), |(request, verdict)| {
        *verdict = verify_sequence(vectors, logits, request);
    });
    Ok(verdicts)
}

/// Checks that every row of logits that a verification reads exists.
fn check_verification(logits: &CpuBuffer, request: &VerifyRows<'_, CpuBuffer>) -> Result<(), DeviceError> {
    const OPERATION: &str = "verify";
    check::vocabulary(OPERATION, logits)?;
    let verify_len = request.draft.len();
    check::index(OPERATION, "row", request.first_row.saturating_add(verify_len), logits.rows())?;
    check::positions(OPERATION, request.start, verify_len + 1)?;
    if let Some(draft_logits) = request.draft_logits.filter(|_| verify_len > 0) {
        let rows = draft_logits.first_row.saturating_add(verify_len);
        check::at_least(OPERATION, "draft_logits", draft_logits.logits, rows, logits.cols())?;
    }
    Ok(())
}

/// Applies one sequence's acceptance rule.
fn verify_sequence(
    vectors: Vectors,
    logits: &CpuBuffer,
    request: &VerifyRows<'_, CpuBuffer>,
) -> SequenceVerdict {
    let rows = &mut WarpedRows { logits, request };
    let (accepted, bonus) = if request.sampling.is_greedy() {
        acceptance::matching_prefix(request.draft, |i| vectors.run(ArgMax(&rows.target_logits(i))))
    } else if request.rule == Rule::Match || request.draft.is_empty() {
        acceptance::matching_prefix(request.draft, |i| {
            let stream = Stream::target_draw(request.seed, request.start + i + 1);
            draw(&warp(&rows.target_logits(i), request.sampling), stream)
        })
    } else {
        let uniform =
            |slot| Stream::new(request.seed, Purpose::AcceptanceUniform, slot, request.start).uniform();
        let decision = match request.rule {
            Rule::Block => acceptance::block(request.draft, rows, uniform),
            Rule::Rejection | Rule::Match => acceptance::rejection(request.draft, rows, uniform),
        };
        let stream = Stream::new(request.seed, Purpose::ResidualDraw, decision.accepted, request.start);
        (decision.accepted, draw_weighted(&decision.weights, stream))
    };
    // A fault in the target's row i of logits ends the acceptance: d_1..d_i stay accepted.
    let fault = (0..=accepted).find_map(|i| Some((i, LogitsFault::of(&rows.target_logits(i))?)));
    let (accepted, bonus, fault) = match fault {
        Some((row, fault)) => (row, 0, Some(fault)),
        None => (accepted, bonus, None),
    };
    SequenceVerdict { accepted, bonus, next_start: request.start + accepted + 1, fault }
}

/// The target's distributions p and the draft's distributions q of one verification, warped when a rule asks
/// for them. Their rows were checked to exist.
struct WarpedRows<'a> {
    logits: &'a CpuBuffer,
    request: &'a VerifyRows<'a, CpuBuffer>,
}

impl WarpedRows<'_> {
    /// Returns the target's logits after candidate i, as the logit processors edit them.
    fn target_logits(&self, i: usize) -> Cow<'_, [f32]> {
        let mut row = Cow::Borrowed(self.logits.row(self.request.first_row + i).unwrap_or(&[]));
        if let Some(edits) = self.request.edits {
            edits.apply(i, row.to_mut());
        }
        row
    }
}

impl<'a> Rows for WarpedRows<'a> {
    fn target(&mut self, i: usize) -> Vec<f64> {
        softmax(&warp(&self.target_logits(i), self.request.sampling))
    }

    fn draft(&mut self, j: usize) -> Vec<f64> {
        let row = |draft: DraftLogits<'a, CpuBuffer>| {
            Some((draft.logits.row(draft.first_row + j - 1)?, draft.is_warped))
        };
        match self.request.draft_logits.and_then(row) {
            Some((scores, true)) => softmax(scores),
            Some((logits, false)) => softmax(&warp(logits, self.request.sampling)),
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
