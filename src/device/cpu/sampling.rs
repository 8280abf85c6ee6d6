//! Drawing drafts, and applying the acceptance rules to rows of logits.

use super::buffer::Buffer;
use crate::acceptance::{self, Rows, Rule};
use crate::device::{DeviceError, DraftRows, DraftToken, Verdict, VerifyRows};
use crate::random::{Purpose, Stream};
use crate::sampling::{argmax, confidence, draw, draw_weighted, softmax, warp};

/// Samples slot `slot` of a draft from row `row`.
pub(super) fn draft(
    logits: &Buffer,
    draft: &DraftRows<'_>,
    slot: usize,
    row: usize,
) -> Result<DraftToken, DeviceError> {
    let row = logits_row("draft", logits, row)?;
    let token = if draft.sampling.is_greedy() {
        argmax(row.iter().copied())
    } else {
        let stream = match draft.rule {
            Rule::Match => Stream::target_draw(draft.seed, draft.start + slot),
            Rule::Rejection | Rule::Block => Stream::new(draft.seed, Purpose::DraftDraw, slot, draft.start),
        };
        draw(&warp(row, draft.sampling), stream)
    };
    Ok(DraftToken { token, confidence: confidence(row) })
}

/// Applies one sequence's acceptance rule.
pub(super) fn verify(logits: &Buffer, request: &VerifyRows<'_, Buffer>) -> Result<Verdict, DeviceError> {
    let verify_len = request.draft.len();
    logits_row("verify", logits, request.first_row.saturating_add(verify_len))?;
    if let Some(draft_logits) = request.draft_logits.filter(|_| verify_len > 0) {
        logits_row("verify", draft_logits, verify_len - 1)?;
        if draft_logits.cols() != logits.cols() {
            return Err(DeviceError::Shape {
                operation: "verify",
                operand: "draft logits",
                expected: vec![draft_logits.rows(), logits.cols()],
                found: vec![draft_logits.rows(), draft_logits.cols()],
            });
        }
    }
    let mut rows = WarpedRows { logits, request };
    let (accepted, bonus) = if request.sampling.is_greedy() {
        acceptance::matching_prefix(request.draft, |i| argmax(rows.target_logits(i).iter().copied()))
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
    Ok(Verdict { accepted, bonus })
}

/// A row of logits; an error if there are not so many.
fn logits_row<'a>(operation: &'static str, logits: &'a Buffer, row: usize) -> Result<&'a [f32], DeviceError> {
    let out_of_range =
        DeviceError::OutOfRange { operation, what: "logits row", index: row, limit: logits.rows() };
    logits.row(row).ok_or(out_of_range)
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
