//! Benchmark of the policy `Flex`: the time that the choice of a step and its report take on the host, for batches of up
//! to 256 sequences with blocks of 16 slots.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use flexdraft::acceptance::Rule;
use flexdraft::decode::{
    BatchView, CostModel, Flex, Policy, SequenceStep, SequenceView, StepMode, StepShape, StepView,
};

const SLOTS: usize = 16;

/// Returns confidences that fall from slot to slot, differently for each sequence and step.
fn confidence(sequence: usize, step: usize) -> Vec<f32> {
    let first = 0.55 + 0.44 * ((sequence * 37 + step * 11) % 64) as f32 / 64.0;
    (0..SLOTS - 1).map(|slot| first * 0.97f32.powi(slot as i32)).collect()
}

fn views(confidences: &[Vec<f32>]) -> Vec<SequenceView<'_>> {
    let view = |number: usize| SequenceView {
        number: number as u64,
        position: 500 + number,
        block_size: SLOTS,
        draws: true,
        may_draft: true,
        wanted: 1000,
        confidence: &confidences[number],
        verify_len: SLOTS - 1,
        verify_len_is_free: true,
        rule: Rule::Match,
        ..SequenceView::default()
    };
    (0..confidences.len()).map(view).collect()
}

/// Returns a policy that knows a machine whose rows are free up to some tens, so that all ways of drafting compete.
fn policy() -> Flex {
    let mut cost = CostModel::default();
    for sequences in [1, 4, 16, 64, 256] {
        for mask_rows in [0, 16, 256] {
            let shape = StepShape { sequences, candidates: 4 * sequences, mask_rows, ..StepShape::default() };
            let rows = (shape.candidates + mask_rows) as f64;
            cost.observe(&shape, 7e-3 + 2e-5 * (rows - 64.0).max(0.0));
        }
    }
    Flex::new(cost)
}

/// Returns the report of a step that did what the choices say and accepted half of each draft, rounded up, so that drafts
/// stay worth their rows and all ways of drafting are compared.
fn report(choices: &[flexdraft::decode::Choice]) -> Vec<SequenceStep> {
    let step = |(index, choice): (usize, &flexdraft::decode::Choice)| SequenceStep {
        index,
        mode: Some(StepMode::Mixed),
        cached: 500 + index,
        candidates: choice.verify_len + 1,
        groups: choice.groups.iter().count(),
        block_size: SLOTS,
        had_draft: true,
        drafted: choice.draft,
        drafted_apart: choice.draft && choice.groups.is_empty(),
        committed: choice.verify_len.div_ceil(2) + 1,
        compared: None,
    };
    choices.iter().enumerate().map(step).collect()
}

fn flex_choice(criterion: &mut Criterion) {
    for part in ["choose", "choose and observe"] {
        let mut group = criterion.benchmark_group(part);
        for batch in [1, 16, 64, 256] {
            let mut flex = policy();
            let mut step = 0;
            let mut run = |observes: bool| {
                step += 1;
                let confidences: Vec<Vec<f32>> = (0..batch).map(|index| confidence(index, step)).collect();
                let views = views(&confidences);
                let choices = flex.choose(&BatchView { sequences: &views, groups_allowed: true });
                if observes {
                    let steps = report(&choices);
                    flex.observe(&StepView { seconds: 8e-3, sequences: &steps });
                }
                choices
            };
            // The policy knows drafts and steps before it is timed.
            (0..200).for_each(|_| _ = run(true));
            let observes = part != "choose";
            group.bench_function(BenchmarkId::from_parameter(batch), |bencher| {
                bencher.iter(|| black_box(run(observes)));
            });
        }
        group.finish();
    }
}

criterion_group!(benches, flex_choice);
criterion_main!(benches);
