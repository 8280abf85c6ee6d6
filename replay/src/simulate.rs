//! The simulator: runs a policy over recorded drafts on a simulated machine.

use flexdraft::acceptance::Rule;
use flexdraft::decode::{
    BatchView, Choice, ComparedToken, Confidence, Policy, SequenceStep, SequenceView, StepMode, StepView,
};

use crate::informed::Informed;
use crate::load::{Kind, Load};
use crate::machine::{Machine, Rows};
use crate::oracle::Oracle;
use crate::recording::{Random, Recording};
use crate::seat::Seat;

/// Standard deviation of a step's duration, relative to the duration.
const NOISE: f64 = 0.1;
/// One step in this number is an outlier, which takes `OUTLIER` times as long.
const OUTLIERS: f64 = 200.0;
const OUTLIER: f64 = 8.0;
/// Factor on every duration in the second half of a replay.
const DRIFT: f64 = 2.0;
/// Number of tokens of a prompt that arrives.
const PROMPT: usize = 96;

/// Decides the choices of a replay.
pub enum Driver<'a> {
    /// A policy, which sees what the engine shows it.
    Policy(&'a mut dyn Policy),
    /// A policy together with which the engine drafts for the requests that must draft, even if the policy itself never
    /// drafts.
    Obliged(&'a mut dyn Policy),
    /// The informed bound, which knows the machine and all acceptance probabilities.
    Informed(Informed<'a>),
    /// An oracle, which knows the machine and all match lengths.
    Oracle(Oracle),
}

/// The counts of a replay, without its first steps.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Outcome {
    /// Number of committed tokens.
    pub tokens: usize,
    /// Simulated seconds.
    pub seconds: f64,
    /// Number of verifications, and the sum of their verify lengths.
    pub verifications: usize,
    /// Sum of the verify lengths.
    pub verified: usize,
    /// Number of mask groups in verification passes.
    pub groups: usize,
    /// Number of steps with a separate drafting pass.
    pub apart: usize,
    /// Number of steps.
    pub steps: usize,
}

impl Outcome {
    /// Returns the committed tokens per second.
    pub fn rate(&self) -> f64 {
        self.tokens as f64 / self.seconds
    }
}

/// Runs `driver` over `load` on `machine`.
pub fn replay(
    driver: &mut Driver<'_>,
    recording: &Recording,
    machine: &Machine,
    load: &Load,
    seed: u64,
) -> Outcome {
    let mut noise = Random(seed ^ 0x5EED);
    let mut counted = Outcome::default();
    let slots = recording.block_size;
    let mut numbers = 0;
    let mut seats: Vec<Seat<'_>> = (0..load.batch)
        .map(|seat| {
            numbers += 1;
            let random = Random(seed.wrapping_add(seat as u64 * 7919));
            let (at, drafted, transcript) = (0, false, &recording.transcripts[0][..]);
            let (cached, unread, absent) = (load.context, 0, 0);
            let wanted = if load.arrivals { 20 + seat * 17 % 160 } else { usize::MAX };
            let kind = load.kind(seat);
            let mut seat = Seat {
                kind,
                number: numbers,
                random,
                transcript,
                place: 0,
                at,
                drafted,
                unverified: None,
                cached,
                unread,
                wanted,
                absent,
            };
            seat.begin(recording, load.context);
            seat
        })
        .collect();
    let mut read_before = 0;
    for step in 0..load.steps {
        let others = if step >= load.prompts_from { load.prompt_rows } else { 0 };
        for seat in seats.iter_mut().filter(|seat| seat.absent > 0) {
            seat.absent -= 1;
        }
        let present: Vec<usize> = (0..seats.len()).filter(|&seat| seats[seat].absent == 0).collect();
        let mut views: Vec<SequenceView<'_>> =
            present.iter().map(|&seat| view(&seats[seat], slots)).collect();
        if others > 0 {
            views.push(SequenceView {
                number: u64::MAX,
                position: 2047,
                block_size: slots,
                reads: others,
                draws: false,
                may_draft: true,
                proposes: false,
                wanted: 256,
                confidence: &[],
                verify_len: 0,
                verify_len_is_free: true,
                tokens_depend_on_verify_len: false,
                rule: Rule::Match,
            });
        }
        let batch = BatchView { sequences: &views, groups_allowed: true };
        let must_draft = match driver {
            Driver::Policy(policy) => policy.drafts(),
            Driver::Obliged(_) | Driver::Informed(_) | Driver::Oracle(_) => true,
        };
        let mut choices = match driver {
            Driver::Policy(policy) | Driver::Obliged(policy) => policy.choose(&batch),
            Driver::Informed(informed) => {
                let present: Vec<&Seat<'_>> = present.iter().map(|&seat| &seats[seat]).collect();
                informed.choose(&present, &batch, machine, read_before)
            }
            Driver::Oracle(oracle) => {
                let present: Vec<&Seat<'_>> = present.iter().map(|&seat| &seats[seat]).collect();
                oracle.choose(&present, &batch, machine, read_before)
            }
        };
        for (choice, view) in choices.iter_mut().zip(&views) {
            if !view.verify_len_is_free {
                choice.verify_len = view.verify_len;
                choice.draft = must_draft;
            }
            choice.draft &= view.may_draft && view.draws;
            choice.verify_len = choice.verify_len.min(view.confidence.len());
            if choice.draft {
                choice.groups = choice.groups.up_to(choice.verify_len)
            } else {
                choice.groups = Default::default()
            }
        }
        let (mut rows, mut steps, mut tokens) = (Vec::new(), Vec::new(), 0);
        let reading: Vec<usize> = views.iter().map(|view| view.reads).collect();
        drop(views);
        for (index, (&seat, choice)) in present.iter().zip(&choices).enumerate() {
            let (row, report) =
                advance(&mut seats[seat], (recording, load.context), index, *choice, reading[index]);
            tokens += report.committed;
            rows.push(row);
            steps.push(report);
            if load.arrivals && seats[seat].wanted == 0 {
                let seat = &mut seats[seat];
                numbers += 1;
                (seat.number, seat.cached, seat.unread) = (numbers, 0, PROMPT);
                seat.wanted = 20 + seat.random.below(160);
                seat.absent = seat.random.below(40);
                seat.begin(recording, 0);
            }
        }
        if others > 0 {
            let row = Rows { candidates: others, slots, cached: read_before, ..Rows::default() };
            rows.push(row);
            steps.push(report(present.len(), None, row, false, false, 0));
            read_before = if read_before + others > 2048 { 0 } else { read_before + others };
        }
        // Four uniform numbers, close to a normal distribution.
        let normal = (0..4).map(|_| noise.uniform() - 0.5).sum::<f64>() * 3f64.sqrt();
        let outlier = noise.uniform() < 1.0 / OUTLIERS;
        let mut seconds = machine.seconds(&rows) * (1.0 + NOISE * normal);
        seconds *= if outlier { OUTLIER } else { 1.0 };
        seconds *= if step >= load.steps / 2 { DRIFT } else { 1.0 };
        if let Driver::Policy(policy) = driver {
            policy.observe(&StepView { seconds, sequences: &steps });
        }
        if step >= load.not_counted {
            counted.tokens += tokens;
            counted.seconds += seconds;
            counted.steps += 1;
            counted.verified += steps.iter().map(SequenceStep::verified).sum::<usize>();
            counted.verifications += steps.iter().filter(|step| step.mode.is_some()).count();
            counted.groups += steps.iter().map(|step| step.groups).sum::<usize>();
            counted.apart += usize::from(steps.iter().any(|step| step.drafted_apart));
        }
    }
    counted
}

fn view<'a>(seat: &Seat<'a>, slots: usize) -> SequenceView<'a> {
    let confidence = seat.draft().map_or(&[][..], |draft| &draft.confidence);
    SequenceView {
        number: seat.number,
        position: seat.cached,
        block_size: slots,
        reads: seat.unread,
        draws: true,
        may_draft: seat.kind != Kind::MayNotDraft,
        proposes: false,
        wanted: seat.wanted,
        confidence,
        verify_len: Confidence::default().verify_len(confidence),
        verify_len_is_free: seat.kind != Kind::MustDraft,
        tokens_depend_on_verify_len: seat.kind == Kind::MustDraft,
        rule: if seat.kind == Kind::MustDraft { Rule::Rejection } else { Rule::Match },
    }
}

/// Applies a choice to a sequence.
fn advance<'a>(
    seat: &mut Seat<'a>,
    (recording, context): (&'a Recording, usize),
    index: usize,
    choice: Choice,
    reads: usize,
) -> (Rows, SequenceStep) {
    let slots = recording.block_size;
    let had_draft = seat.draft().is_some();
    let verified = if reads > 0 { 0 } else { choice.verify_len };
    let accepted = seat.draft().map_or(0, |draft| draft.matches.min(verified));
    let groups = choice.groups.iter().count();
    let apart = choice.draft && !choice.groups.contains(accepted);
    let candidates = if reads > 0 { reads } else { verified + 1 };
    let row = Rows { candidates, logits: verified + 1, groups, apart, slots, cached: seat.cached };
    let mode = match (choice.draft, groups) {
        _ if reads > 0 => None,
        (false, _) if verified == 0 => Some(StepMode::Autoregressive),
        (_, 0) => Some(StepMode::Sequential),
        (_, groups) if groups == verified + 1 => Some(StepMode::Parallel),
        _ => Some(StepMode::Mixed),
    };
    let committed = (accepted + 1).min(seat.wanted);
    let compared = if reads > 0 { None } else { compared(seat, verified, accepted) };
    let report =
        SequenceStep { had_draft, compared, ..report(index, mode, row, choice.draft, apart, committed) };
    seat.unverified = match (compared, seat.draft().or(seat.unverified.map(|(draft, _)| draft))) {
        (Some(ComparedToken { slot, is_equal: true, .. }), Some(draft)) if !choice.draft => {
            Some((draft, slot + 1))
        }
        _ => None,
    };
    seat.unread = 0;
    seat.cached += if reads > 0 { reads } else { accepted + 1 };
    seat.at += if reads > 0 { 0 } else { accepted + 1 };
    seat.drafted = choice.draft;
    if seat.wanted != usize::MAX {
        seat.wanted -= committed;
    }
    if seat.at >= seat.transcript.len() {
        let drafted = seat.drafted;
        seat.begin(recording, context);
        seat.drafted = drafted;
    }
    (row, report)
}

/// Returns the comparison of the first draft token that was not verified with the step's bonus token, as the engine reports it.
fn compared(seat: &Seat<'_>, verified: usize, accepted: usize) -> Option<ComparedToken> {
    let (draft, slot) = match seat.draft() {
        Some(draft) if accepted == verified => (draft, verified),
        Some(_) => return None,
        None => seat.unverified?,
    };
    let &confidence = draft.confidence.get(slot).filter(|_| seat.kind != Kind::MustDraft)?;
    Some(ComparedToken { slot, confidence, is_equal: slot < draft.matches })
}

fn report(
    index: usize,
    mode: Option<StepMode>,
    row: Rows,
    drafted: bool,
    apart: bool,
    committed: usize,
) -> SequenceStep {
    SequenceStep {
        index,
        mode,
        cached: row.cached,
        candidates: row.candidates,
        groups: row.groups,
        block_size: row.slots,
        had_draft: false,
        drafted,
        drafted_apart: apart,
        committed,
        compared: None,
    }
}
