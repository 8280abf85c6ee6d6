//! The joint pass of a step, which runs candidate rows and mask rows together, and the verification of its candidates.

use super::groups::Draw;
use super::hooks::{self, FailedRow};
use super::layout::{DraftPlaces, StepLayout};
use super::plan::SequencePlan;
use crate::decode::error::DecodeError;
use crate::decode::sequence::Sequence;
use crate::device::{Device, DeviceError, SequenceVerdict, StepTables};
use crate::model::forward::{Model, Workspace};

/// A step while it runs: the plans, the sequences that they are for, and the memory that they use.
pub(super) struct Step<'a, D: Device> {
    pub(super) model: &'a Model<D>,
    pub(super) cache: &'a mut D::Cache,
    pub(super) work: &'a mut Workspace<D>,
    /// The buffer for the candidates' logits, in a step in which one product of the LM head computes these logits
    /// alone.
    pub(super) target_logits: &'a mut D::Buffer,
    /// The buffer for the logits that the step draws its drafts from.
    pub(super) next_drafts: &'a mut D::Buffer,
    pub(super) sequences: &'a [Sequence<D::Buffer>],
    pub(super) plans: &'a [SequencePlan],
    pub(super) layout: &'a StepLayout<'a>,
    /// The next free row of draft logits and index of a draft token, for drafts that the layout does not have.
    pub(super) places: DraftPlaces,
    /// The target's logits before any change, for each plan that draws a token: one row per candidate that is verified,
    /// or none if the request did not ask for log-probabilities.
    pub(super) raw_logits: Vec<Vec<Vec<f32>>>,
    /// Everything that the device takes from the host in this step.
    pub(super) tables: StepTables<'a, D::Buffer>,
    /// The rows of the target's logits at which hooks failed.
    pub(super) failed_rows: Vec<FailedRow>,
}

impl<'a, D: Device> Step<'a, D> {
    /// Returns the plan that `draw` refers to.
    pub(super) fn plan(&self, draw: Draw) -> &'a SequencePlan {
        &self.plans[draw.plan]
    }

    /// Returns the sequence (the state of one request) whose plan `draw` refers to.
    pub(super) fn sequence(&self, draw: Draw) -> &'a Sequence<D::Buffer> {
        &self.sequences[self.plan(draw).sequence]
    }

    /// Returns the error that ends the request of `draw`, if `verdict` has a fault: the hook's error, or the fault of
    /// the target's logits.
    pub(super) fn failure(&self, draw: Draw, verdict: SequenceVerdict) -> Option<DecodeError> {
        let fault = verdict.fault?;
        let mut of_hooks = self.failed_rows.iter();
        let of_hook = of_hooks.find(|row| (row.verdict, row.row) == (draw.verdict, verdict.accepted));
        Some(match of_hook {
            Some(row) => row.error.clone(),
            None => DecodeError::Logits { position: verdict.next_start, fault },
        })
    }

    /// Runs the joint pass. Returns the step's tables on the device, which the verification takes.
    pub(super) fn forward(&mut self) -> Result<D::Tables<'a>, DeviceError> {
        self.model.forward(self.tables, self.cache, self.work)
    }

    /// Computes the target's logits, lets the requests' hooks edit these logits, and verifies the drafts. The
    /// verification applies the logit processors.
    pub(super) fn verify(
        &mut self,
        tables: D::Tables<'a>,
        results: &'a mut D::Results,
    ) -> Result<D::Verification<'a>, DeviceError> {
        let Self { model, work, target_logits, next_drafts, sequences, plans, layout, .. } = self;
        let (raw_logits, failed_rows) = (&mut self.raw_logits, &mut self.failed_rows);
        let logits = if layout.joined { next_drafts } else { target_logits };
        model.logits(&layout.logits_rows, work, logits)?;

        // The rows of all requests that ask for log-probabilities are read together, so that the host waits once.
        let wanted = |draw: &Draw| {
            let plan = &plans[draw.plan];
            let asks = sequences[plan.sequence].request.logprobs.is_some();
            if asks { draw.first_logits..draw.first_logits + plan.verify_len + 1 } else { 0..0 }
        };
        let rows: Vec<usize> = layout.draws.iter().flat_map(wanted).collect();
        let mut read = model.device().read_rows(logits, &rows)?.into_iter();
        let of_draw = |draw: &Draw| read.by_ref().take(wanted(draw).len()).collect();
        *raw_logits = layout.draws.iter().map(of_draw).collect();
        for draw in &layout.draws {
            let plan = &plans[draw.plan];
            let sequence = &sequences[plan.sequence];
            let mut callbacks = sequence.callbacks.borrow_mut();
            let Some(hook) = callbacks.logits_hook.as_mut() else { continue };
            let mut prefix = sequence.tokens.clone();
            for row in 0..=plan.verify_len {
                let mut failure = None;
                let mut edit = |logits: &mut [f32]| failure = hooks::edit(&mut **hook, &prefix, logits);
                model.device().edit_row(logits, draw.first_logits + row, &mut edit)?;
                // The hook is not called for later rows, because the output ends at the latest at a row at which the
                // hook failed.
                if let Some(error) = failure {
                    failed_rows.push(FailedRow { verdict: draw.verdict, row, error });
                    break;
                }
                prefix.extend(sequence.draft.as_ref().and_then(|draft| draft.tokens.get(row)));
            }
        }
        model.device().verify(tables, logits, results)
    }
}
