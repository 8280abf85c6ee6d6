//! One step: the joint pass, the verification, and the draft of the next block.
//!
//! Everything that can fail happens before any sequence changes: [`run`] only computes, and the engine commits
//! the outcomes afterwards.

mod buffers;
mod drafting;
mod groups;
mod joint;
mod outcome;
mod plan;

use drafting::VerifiedStep;
use joint::Step;
use outcome::DrawnTokens;

pub(super) use self::buffers::StepBuffers;
pub(super) use self::outcome::Outcome;
pub(super) use self::plan::SequencePlan;
use super::error::DecodeError;
use super::sequence::Sequence;
use crate::device::Device;
use crate::model::forward::Model;

/// Runs the planned step. Sequences keep their tokens, drafts and lengths. Drafts that the step does not verify
/// were [set aside](StepBuffers::set_aside).
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
) -> Result<Vec<Outcome<D::Buffer>>, DecodeError> {
    let (mut step, results) = Step::new(model, cache, buffers, sequences, plans);
    let mut groups = step.forward()?;
    let drawn = if step.draws.is_empty() {
        plans.iter().map(|_| DrawnTokens::nothing()).collect()
    } else {
        let verification = step.verify(&mut groups, results)?;
        let drawn = VerifiedStep::new(step, verification).draft(groups)?;
        // Nothing fails after this. Until here, the drafts of the last step could be verified again.
        std::mem::swap(&mut buffers.last_drafts, &mut buffers.next_drafts);
        drawn
    };
    let outcome =
        |(plan, drawn): (&SequencePlan, DrawnTokens<_>)| drawn.outcome(&sequences[plan.sequence], plan);
    Ok(plans.iter().zip(drawn).map(outcome).collect())
}
