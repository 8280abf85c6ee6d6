//! One step: the joint pass, the verification, and the draft of the next block.
//!
//! Everything that can fail happens before any sequence changes: [`run`] only computes, and the engine commits
//! the outcomes afterwards.

mod buffers;
mod drafting;
mod groups;
mod hooks;
mod joint;
mod layout;
mod outcome;
mod padding;
mod plan;
mod proposing;

use drafting::VerifiedStep;
use joint::Step;
use layout::{StepLayout, draft_rows, draft_tables};
use outcome::DrawnTokens;

pub(super) use self::buffers::StepBuffers;
pub(super) use self::outcome::Outcome;
pub(super) use self::padding::PaddingPages;
pub(super) use self::plan::SequencePlan;
use super::sequence::Sequence;
use crate::device::{Device, DeviceError, StepTables};
use crate::model::forward::Model;

/// Runs the step that `plans` describe. Sequences keep their tokens, drafts and lengths. Drafts that the step does not
/// verify were [set aside](StepBuffers::set_aside).
///
/// The host waits for the device once, for verdicts and drafts, including the drafts of a drafting pass. The host
/// waits a second time if an accepted length had no group although its sequence had groups, and not at all if no
/// token is drawn.
pub(super) fn run<D: Device>(
    model: &Model<D>,
    cache: &mut D::Cache,
    buffers: &mut StepBuffers<D>,
    sequences: &mut [Sequence<D::Buffer>],
    plans: &[SequencePlan],
) -> Result<Vec<Outcome<D::Buffer>>, DeviceError> {
    // The step only reads the sequences. The parameter is `&mut` because hooks are `Send` and not `Sync`: only an
    // exclusive reference may move to the device's thread.
    let sequences = &*sequences;
    let drawn = draw(model, cache, buffers, sequences, plans)?;
    if plans.iter().any(SequencePlan::draws) {
        // Nothing can fail after the swap of the buffers. Before it, a repeated step could still verify the drafts of
        // the last step.
        std::mem::swap(&mut buffers.last_drafts, &mut buffers.next_drafts);
    }
    let outcome =
        |(plan, drawn): (&SequencePlan, DrawnTokens<_>)| drawn.outcome(&sequences[plan.sequence], plan);
    Ok(plans.iter().zip(drawn).map(outcome).collect())
}

/// Lays out the step, runs it, and returns the tokens that were drawn for each plan.
fn draw<D: Device>(
    model: &Model<D>,
    cache: &mut D::Cache,
    buffers: &mut StepBuffers<D>,
    sequences: &[Sequence<D::Buffer>],
    plans: &[SequencePlan],
) -> Result<Vec<DrawnTokens<D::Buffer>>, DeviceError> {
    let StepBuffers { work, target_logits, last_drafts, next_drafts, results, padding } = buffers;
    let (layout, places) = StepLayout::new(model, sequences, plans, padding);
    let (edits, failed_rows) = layout.edits(sequences, plans, model.config().vocab_size);
    let verified = layout.verify_rows(sequences, plans, last_drafts, &edits);
    let drafts = draft_rows(&layout.groups, sequences, plans);
    let apart = layout.apart.as_ref().map(|apart| (apart, draft_rows(&apart.groups, sequences, plans)));
    let tables = StepTables {
        pass: &layout.pass,
        tokens: &layout.tokens,
        logits_rows: &layout.logits_rows,
        sequences: &verified,
        vocab: model.config().vocab_size,
        drafts: draft_tables(&layout.groups, &drafts),
        drafting: apart.as_ref().map(|(apart, drafts)| (apart.pass(), draft_tables(&apart.groups, drafts))),
    };
    let layout = &layout;
    let mut step = Step {
        model,
        cache,
        work,
        target_logits,
        next_drafts,
        sequences,
        plans,
        layout,
        places,
        raw_logits: Vec::new(),
        tables,
        failed_rows,
    };
    let tables = step.forward()?;
    if layout.draws.is_empty() {
        return Ok(plans.iter().map(|_| DrawnTokens::nothing()).collect());
    }
    let verification = step.verify(tables, results)?;
    VerifiedStep::new(step, verification).draft()
}
