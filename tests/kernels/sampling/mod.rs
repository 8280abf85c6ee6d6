//! Tests that compare the sampling kernels with the reference in double precision and with themselves: alone, and in
//! any batch, order, tiling and schedule.

pub mod batch;
mod edits;
pub mod generators;
mod on_the_emulator;
pub mod oracle;
mod released_models;
pub mod way;

use flexdraft::kernels::sampling::{LogitRows, RowSampling, RowStats, Sample, workspace_len};
use flexdraft::random::Stream;
use flexdraft::sampling::{SamplingParams, warp};
use flexdraft_reference::calibration::{Calibrator, calibrated_logits};
use flexdraft_reference::linear::Linear;
use half::{bf16, f16};
use proptest::prelude::*;

use crate::halves::Half;

use crate::processors::{Bench, processors, runtimes_agree};
use crate::support::close::close;
use crate::support::properties::properties;
use batch::{Batch, Correction, Outcome, Stored, batch, batch_of, bench, bits, check, poisoned_stats};
use generators::{Shape, logits, noise};
use oracle::{check_row, kept_ids};
use way::Way;

const INF: f32 = f32::INFINITY;
const NAN: f32 = f32::NAN;

// --- Comparison of sampled rows with the reference -------------------------------------------------------

proptest! {
    #![proptest_config(properties(96))]

    #[test]
    fn rows_of_f32_are_sampled_as_the_reference_samples_them(batch in batch::<f32>(1..4, false)) {
        batch.on_every_processor(false).for_each(|outcome| check(&outcome, &batch.ways));
    }

    #[test]
    fn rows_of_bf16_are_sampled_as_the_reference_samples_them(batch in batch::<bf16>(1..4, false)) {
        batch.on_every_processor(false).for_each(|outcome| check(&outcome, &batch.ways));
    }
}

/// Checks on every processor that the stored logits are the reference's calibrated logits, and that the statistics describe
/// the stored logits.
fn check_calibrated<L: Stored, T: Half>(batch: &Batch<L, T>) {
    let exact = exact_corrections(batch);
    batch.on_every_processor(true).for_each(|outcome| check_calibrated_outcome(batch, &exact, &outcome));
}

/// Returns the calibrator's corrections of the logits in f64, and the sum of the magnitudes of each correction's
/// products.
fn exact_corrections<L: Stored, T: Half>(batch: &Batch<L, T>) -> Vec<Vec<(f64, f64)>> {
    let correction = batch.correction.as_ref().unwrap();
    let wide = |values: &[T]| values.iter().map(|x| x.f64()).collect::<Vec<_>>();
    let output = Linear {
        bias: correction.bias.as_ref().map(|bias| bias.iter().map(|&b| f64::from(b)).collect()),
        ..Linear::new(wide(&correction.weight), correction.rank)
    };
    let of_row = |hidden: &Vec<T>| {
        let hidden = wide(hidden);
        let size = |weight: &[f64]| weight.iter().zip(&hidden).map(|(w, u)| (w * u).abs()).sum();
        output.apply(&hidden).into_iter().zip(output.weight.chunks(correction.rank).map(size)).collect()
    };
    correction.hidden.iter().map(of_row).collect()
}

fn check_calibrated_outcome<L: Stored, T: Half>(
    batch: &Batch<L, T>,
    exact: &[Vec<(f64, f64)>],
    outcome: &Outcome<L>,
) {
    for ((stored, row), corrections) in outcome.logits.iter().zip(&batch.rows).zip(exact) {
        for (id, (correction, size)) in corrections.iter().enumerate() {
            let (found, exact) = (f64::from(stored[id].value()), f64::from(row[id].value()) + correction);
            if exact.is_nan() || exact.is_infinite() {
                assert!(found == exact || (found.is_nan() && exact.is_nan()), "{found}, not {exact}");
                continue;
            }
            // The tolerance is half a unit in the last place of the stored type, and the rounding of the f32 sum.
            let tolerance = f64::from(L::EPSILON) * 0.51 * exact.abs() + (1e-6 * size).max(2e-5);
            let overflows = exact.abs() > L::LARGE;
            assert!(overflows || (found - exact).abs() <= tolerance, "id {id}: {found}, not {exact}");
        }
    }
    check(outcome, &batch.ways);
}

proptest! {
    #![proptest_config(properties(48))]

    #[test]
    fn calibrated_rows_of_f32_are_the_reference_s(batch in batch::<f32>(1..20, true)) {
        check_calibrated(&batch);
    }

    #[test]
    fn calibrated_rows_of_bf16_are_the_reference_s(batch in batch::<bf16>(1..20, true)) {
        check_calibrated(&batch);
    }
}

proptest! {
    #![proptest_config(properties(12))]

    #[test]
    fn rows_of_f16_are_sampled_as_the_reference_samples_them(batch in batch::<f16>(1..4, false)) {
        batch.on_every_processor(false).for_each(|outcome| check(&outcome, &batch.ways));
    }

    #[test]
    fn a_calibrator_of_f16_is_the_reference_s(
        f32_logits in batch_of::<f32, f16>(1..20, true),
        f16_logits in batch_of::<f16, f16>(1..20, true),
    ) {
        check_calibrated(&f32_logits);
        check_calibrated(&f16_logits);
    }
}

/// Logits and calibrators of f16 keep 11 bits of their numbers: each logit and its correction are the same number, which
/// bf16 does not have, so that the sum is exact.
#[test]
fn a_calibrator_of_f16_does_not_go_through_bf16() {
    check_exact_corrections::<f32>();
    check_exact_corrections::<f16>();
}

fn check_exact_corrections<L: Stored>() {
    let (vocab, rank) = (130, 72);
    let value = |id: usize| 1.0 + (id + 1) as f32 / 1024.0;
    let one_of = |at: usize, x: f32| -> Vec<f16> {
        (0..rank).map(|i| f16::from_f32(if i == at { x } else { 0.0 })).collect()
    };
    // More than 64 rows take the large tiles.
    for rows in [3, 70] {
        let logits = |row: usize, scale: f32| -> Vec<f32> {
            (0..vocab).map(|id| scale * value(id) * 2f32.powi(row as i32 % 5)).collect()
        };
        let plain = (0..rows).map(|row| logits(row, 1.0)).collect();
        let mut batch = Batch::<L, f16>::plain(plain, vec![Way::greedy(); rows]);
        batch.correction = Some(Correction {
            rank,
            weight: (0..vocab).flat_map(|id| one_of(rank - 1, value(id))).collect(),
            bias: None,
            hidden: (0..rows).map(|row| one_of(rank - 1, 2f32.powi(row as i32 % 5))).collect(),
        });
        for outcome in batch.on_every_processor(true) {
            for (row, found) in outcome.logits.iter().enumerate() {
                let found: Vec<f32> = found.iter().map(|logit| logit.value()).collect();
                assert_eq!(found, logits(row, 2.0));
            }
        }
    }
}

// --- Comparison of calibrated logits with the reference ---------------------------------------------------

/// The kernel's calibrated logits, computed from the hidden row u, agree with the reference's calibrator, which
/// computes u from W1 and the bonus token.
#[test]
fn a_draft_slot_is_the_reference_s_from_end_to_end() {
    let (vocab, hidden, rank) = (150, 12, 16);
    let matrix = |seed, len| noise(seed, len, 0.4).into_iter().map(bf16::from_f32).collect::<Vec<_>>();
    let wide = |values: &[bf16]| values.iter().map(|x| x.to_f64()).collect::<Vec<_>>();
    let (w1, w2, bias) = (matrix(1, rank * 2 * hidden), matrix(2, vocab * rank), noise(3, vocab, 1.0));
    let (embedding, h) = (wide(&matrix(4, hidden)), wide(&matrix(5, hidden)));
    let lm_head = Linear::new(wide(&matrix(6, vocab * hidden)), hidden);
    let calibrator = Calibrator {
        hidden: Linear::new(wide(&w1), 2 * hidden),
        output: Linear {
            bias: Some(bias.iter().map(|&b| f64::from(b)).collect()),
            ..Linear::new(wide(&w2), rank)
        },
    };
    let expected = calibrated_logits(&lm_head, Some(&calibrator), &embedding, &h);
    let u = calibrator.hidden.apply(&[embedding, h.clone()].concat());
    let u = u.into_iter().map(|x| bf16::from_f64(x / (1.0 + (-x).exp()))).collect();
    let mut batch = Batch::<f32>::plain(
        vec![lm_head.apply(&h).into_iter().map(|x| x as f32).collect()],
        vec![Way::drawn(SamplingParams::at_temperature(0.7), 3)],
    );
    batch.correction = Some(Correction { rank, weight: w2, bias: Some(bias), hidden: vec![u] });
    for outcome in batch.on_every_processor(true) {
        // The tolerance is 0.02, because u was rounded to bf16 before the kernel read it.
        for (found, expected) in outcome.logits[0].iter().zip(&expected) {
            assert!((f64::from(*found) - expected).abs() < 0.02, "{found}, not {expected}");
        }
        check(&outcome, &batch.ways);
    }
}

// --- Truncation by top-k, top-p and min-p ----------------------------------------------------------------

#[test]
fn ties_and_crowds_are_cut_where_the_contract_cuts_them() {
    let base = SamplingParams::at_temperature(1.0);
    let vocab = 5000;
    let rows = [
        vec![1.5; vocab],
        logits(1, vocab, Shape::Steps(0.5)),
        logits(2, vocab, Shape::Crowd),
        // Logits that differ only in the last bit, next to equal logits.
        (0..vocab).map(|id| if id % 2 == 0 { 1.0 } else { 1.0 - f32::EPSILON / 2.0 }).collect(),
        (0..vocab).map(|id| if id % 2 == 0 { -20.0 } else { (id % 3) as f32 }).collect(),
    ];
    let mut ways = Vec::new();
    for top_k in [1, 2, 1023, 1024, 1025, 1026, 2500, 4999] {
        ways.push(SamplingParams { top_k, ..base });
        ways.push(SamplingParams { top_k, top_p: 0.6, ..base });
    }
    for top_p in [1e-9, 0.1, 0.25, 0.5, 0.75, 0.999] {
        ways.push(SamplingParams { top_p, ..base });
        ways.push(SamplingParams { top_p, min_p: 0.3, temperature: 0.4, ..base });
    }
    for (index, row) in rows.into_iter().enumerate() {
        let ways: Vec<Way> = ways.iter().map(|&params| Way::drawn(params, index as u64)).collect();
        let batch = Batch::<f32>::plain(vec![row; ways.len()], ways);
        batch.on_every_processor(false).for_each(|outcome| check(&outcome, &batch.ways));
    }
}

#[test]
fn equal_logits_reach_a_mass_exactly() {
    // The n equal logits have equal weights, so top-p P keeps ⌈P · n⌉ ids, with P rounded to f32.
    for (n, top_p, kept) in [
        (4, 0.5, 2),
        (4, 0.51, 3),
        (10, 0.1, 2),
        (8, 0.125, 1),
        (3, 1e-30, 1),
        (7, 1.0 - f32::EPSILON / 2.0, 7),
    ] {
        let params = SamplingParams { top_p, ..SamplingParams::at_temperature(0.3) };
        assert_eq!(kept_ids(&warp(&vec![2.0; n], &params)).len(), kept);
        let batch = Batch::<f32>::plain(vec![vec![2.0; n]], vec![Way::drawn(params, 1)]);
        for outcome in batch.on_every_processor(false) {
            assert_eq!(outcome.stats[0].kept as usize, kept, "{n} {top_p}");
        }
    }
}

/// Top-p values just below and just above the largest probability, neighbours in f32, must keep one id and two ids. The
/// fixed-point weights must be accurate enough for this.
#[test]
fn weights_are_precise_to_better_than_the_mass_that_is_asked_for() {
    let others = 200;
    let (mut rows, mut ways, mut expected) = (Vec::new(), Vec::new(), Vec::new());
    for i in 0..60 {
        let below = 0.01 + i as f32 * 0.11;
        let exact = 1.0 / (1.0 + f64::from(others) * f64::from(-below).exp());
        let near = exact as f32;
        for top_p in [near.next_down(), near, near.next_up()] {
            let distance = f64::from(top_p) / exact - 1.0;
            if distance.abs() > 6e-9 {
                rows.push([vec![0.0], vec![-below; others as usize]].concat());
                ways.push(Way::drawn(SamplingParams { top_p, ..SamplingParams::at_temperature(1.0) }, i));
                expected.push(if distance > 0.0 { 2 } else { 1 });
            }
        }
    }
    assert!(expected.iter().filter(|&&kept| kept == 1).count() > 50);
    for outcome in Batch::<f32>::plain(rows, ways).on_every_processor(false) {
        assert_eq!(outcome.stats.iter().map(|stats| stats.kept).collect::<Vec<_>>(), expected);
    }
}

#[test]
fn min_p_does_not_bring_back_what_top_k_dropped() {
    // The smallest logit that min-p keeps occurs three times.
    let lowest = 0.5f32.ln();
    let lowest = if f64::from(lowest).exp() < 0.5 { lowest.next_up() } else { lowest };
    for (min_p, top_k, kept) in [(0.5, 0, 4), (0.5, 2, 2), (0.5, 3, 3), (0.5f32.next_up(), 3, 1)] {
        let params = SamplingParams { min_p, top_k, ..SamplingParams::at_temperature(1.0) };
        let batch =
            Batch::<f32>::plain(vec![vec![lowest, 0.0, lowest, lowest, -9.0]], vec![Way::drawn(params, 2)]);
        for outcome in batch.on_every_processor(false) {
            assert_eq!(outcome.stats[0].kept, kept, "{min_p} {top_k}");
            check(&outcome, &batch.ways);
        }
    }
}

/// At the highest temperatures, scores are multiples of the smallest f32, so different logits can have the same score.
/// The second chunk's largest logit is below the logit of the first chunk's last kept id, but has the same score.
#[test]
fn a_chunk_is_not_passed_over_because_its_score_was_rounded_up() {
    let params =
        SamplingParams { top_k: 3, ..SamplingParams::at_temperature(SamplingParams::MAX_TEMPERATURE) };
    let smallest = f32::from_bits(1) / params.inverse_temperature().unwrap();
    let mut row = vec![-1.0; 2000];
    (row[0], row[7], row[1500]) = (0.0, -2.0 * smallest, -2.4 * smallest);
    let batch = Batch::<f32>::plain(vec![row], vec![Way::drawn(params, 3)]);
    for outcome in batch.on_every_processor(false) {
        assert_eq!(outcome.stats[0].kept, 3);
        check(&outcome, &batch.ways);
    }
}

/// Logits whose difference overflows f32 count for nothing, whether they share a chunk with the largest logit or with
/// logits near them.
#[test]
fn a_logit_too_far_below_the_largest_for_f32_has_no_weight_in_any_chunk() {
    let params = SamplingParams::at_temperature(SamplingParams::MAX_TEMPERATURE);
    let mut row = noise(5, 3000, 2.0);
    (row[0], row[1], row[2000]) = (3e38, -3e38, -3e38);
    let batch = Batch::<f32>::plain(vec![row], vec![Way::drawn(params, 3)]);
    for outcome in batch.on_every_processor(false) {
        assert_eq!((outcome.stats[0].token, outcome.stats[0].log_sum), (0, 0.0));
        check(&outcome, &batch.ways);
    }
}

/// Tests close races: draws over a few ids of nearly equal weight, so that the winner is often ahead by very little.
#[test]
fn a_race_is_won_by_however_little() {
    for vocab in [4, 9, 33] {
        let ways: Vec<Way> =
            (0..250).map(|seed| Way::drawn(SamplingParams::at_temperature(1.0), seed)).collect();
        let rows = (0..250).map(|seed| logits(seed, vocab, Shape::Bell(0.2))).collect();
        let batch = Batch::<f32>::plain(rows, ways);
        for outcome in batch.on_every_processor(false) {
            check(&outcome, &batch.ways);
            // Each id must win some of the 250 draws.
            assert!((0..vocab as i32).all(|id| outcome.stats.iter().any(|stats| stats.token == id)));
        }
    }
}

// --- Independence of a row's results from its batch ------------------------------------------------------

/// Checks that a row's results have the same bits if the row is sampled alone, and in reverse order, on every
/// processor.
fn check_independence<L: Stored, T: Half>(batch: &Batch<L, T>, keep: bool) {
    for processor in processors() {
        check_independence_on(&bench(processor), batch, keep, 3);
    }
}

/// Checks on one processor that all rows give the same results in reverse order, and `count` rows alone. Returns the
/// results of all rows together.
fn check_independence_on<L: Stored, T: Half>(
    bench: &Bench,
    batch: &Batch<L, T>,
    keep: bool,
    count: usize,
) -> Outcome<L> {
    let together = batch.run(bench, keep);
    let backwards: Vec<usize> = (0..batch.rows.len()).rev().collect();
    let reversed = batch.picked(&backwards).run(bench, keep);
    let logits = |outcome: &Outcome<L>, r: usize| -> Vec<u32> {
        outcome.logits[r].iter().map(|l| l.value().to_bits()).collect()
    };
    for (r, stats) in together.stats.iter().enumerate() {
        let other = batch.rows.len() - 1 - r;
        assert_eq!(bits(stats), bits(&reversed.stats[other]), "row {r} backwards");
        assert_eq!(logits(&together, r), logits(&reversed, other), "logits of row {r} backwards");
    }
    // The `count` rows are evenly spread from the first row to the last.
    for r in (0..count).map(|i| i * (batch.rows.len() - 1) / (count - 1)) {
        let alone = batch.picked(&[r]).run(bench, keep);
        assert_eq!(bits(&together.stats[r]), bits(&alone.stats[0]), "row {r} alone");
        assert_eq!(logits(&together, r), logits(&alone, 0), "logits of row {r} alone");
    }
    together
}

proptest! {
    #![proptest_config(properties(12))]

    #[test]
    fn rows_do_not_depend_on_their_batch(batch in batch::<f32>(1..8, false)) {
        check_independence(&batch, false);
    }

    /// Calibrated rows are computed in large tiles if a batch has more than 64 rows, and a row alone in small tiles.
    #[test]
    fn calibrated_rows_depend_on_neither_batch_nor_tile(
        few in batch::<bf16>(2..20, true),
        many in batch_of::<f32, f16>(65..90, true),
    ) {
        check_independence(&few, true);
        check_independence(&many, true);
    }
}

// --- NaN, infinities and invalid operands ----------------------------------------------------------------

#[test]
fn odd_rows_have_a_defined_outcome() {
    let one = SamplingParams::at_temperature(1.0);
    let truncated = SamplingParams { top_k: 2, top_p: 0.9, min_p: 0.01, ..one };
    let rows: [(&[f32], i32, f32); 7] = [
        (&[NAN, 1.0, -INF], 1, 1.0),
        (&[NAN, -INF, NAN], 0, 0.0),
        (&[-INF, -INF, -INF], 0, 0.0),
        (&[1.0, INF, -INF], 1, 1.0),
        (&[-3.4e38, 3.4e38, NAN], 1, 1.0),
        (&[0.0, -0.0, NAN], -1, 0.5),
        (&[INF, INF, 3.0], -1, 0.5),
    ];
    for (row, token, confidence) in rows {
        for params in [SamplingParams::GREEDY, one, truncated, SamplingParams::at_temperature(1e-38)] {
            let way = Way { draft: 1, ..Way::drawn(params, 11) };
            let batch = Batch::<f32>::plain(vec![row.to_vec()], vec![way]);
            for outcome in batch.on_every_processor(false) {
                let stats = outcome.stats[0];
                assert_eq!(stats.confidence, confidence, "{row:?}");
                assert!(token == -1 || stats.token == token, "{row:?}: {stats:?}");
                assert_eq!(outcome.error, if row.iter().any(|l| l.is_nan()) { 4 } else { 0 });
                check_row(&stats, row, &way);
            }
        }
    }
}

/// The host refuses temperatures without a finite reciprocal; a row whose inverse temperature on the device is invalid
/// is sampled greedily.
#[test]
fn inverse_temperatures_that_are_no_finite_number_above_0_are_greedy() {
    assert!(RowSampling::new(&SamplingParams::at_temperature(1e-39), None).is_err());
    let way = Way::drawn(SamplingParams { top_k: 3, ..SamplingParams::at_temperature(1.0) }, 4);
    let sampling = RowSampling::new(&way.params, way.stream()).unwrap();
    for inverse in [0.0, -0.0, -1.0, NAN, INF, -INF] {
        // Word 4 of the parameters is the inverse temperature; it follows two words of seed and two of position.
        let mut words: [u32; 10] = bytemuck::cast(sampling);
        words[4] = f32::to_bits(inverse);
        for processor in processors() {
            let sampling = [bytemuck::cast(words), sampling];
            let (stats, error) = indexed(&bench(processor), &[0, 1], &[0], &sampling, &[-1, -1]);
            assert_eq!((stats[0].inverse_temperature, stats[0].kept, stats[0].probability), (0.0, 1, 1.0));
            assert_eq!((stats[0].token_logit, error), (stats[0].max, 0));
            assert_eq!((stats[1].inverse_temperature, stats[1].kept), (1.0, 3));
        }
    }
}

/// Returns the statistics and the error word of a launch with the given operands.
fn indexed(
    bench: &Bench,
    index: &[i32],
    starts: &[i32],
    sampling: &[RowSampling],
    draft: &[i32],
) -> (Vec<RowStats>, u32) {
    let rows = [logits(1, 24, Shape::Bell(2.0)), logits(2, 24, Shape::Bell(2.0))].concat();
    let (rows, sampling) = (bench.memory(&rows), bench.memory(sampling));
    let [index, starts, draft] = [index, starts, draft].map(|contents| bench.memory(contents));
    let mut workspace = bench.memory(&vec![NAN; workspace_len(index.len(), 20, false).unwrap()]);
    let mut stats = bench.memory(&vec![poisoned_stats(); index.len()]);
    let mut error = bench.memory(&[0]);
    let args = Sample {
        vocab: 20,
        stride: 24,
        logits: LogitRows::Read(bench.view(&rows)),
        logit_index: Some(bench.view(&index)),
        sampling: bench.view(&sampling),
        starts: Some(bench.view(&starts)),
        draft: Some(bench.view(&draft)),
        calibration: None,
        workspace: bench.view_mut(&mut workspace),
        stats: bench.view_mut(&mut stats),
        error: Some(bench.view_mut(&mut error)),
    };
    bench.kernels.sample(&bench.stream, args).unwrap();
    (bench.host(&stats), bench.host(&error)[0])
}

#[test]
fn indices_choose_rows_and_positions_and_are_checked() {
    for processor in processors() {
        check_indices(&bench(processor));
    }
}

fn check_indices(bench: &Bench) {
    let params = SamplingParams::at_temperature(2.0);
    let at = |position| RowSampling::new(&params, Some(Stream::target_draw(4, position))).unwrap();
    let absolute = [at(105), at(7), at(105), at(0)];
    let relative = [at(5).relative_to(1), at(0).relative_to(0), at(98).relative_to(0), at(0)];
    let (expected, error) = indexed(bench, &[1, 0, 1, -1], &[], &absolute, &[0, 1, 2, 3]);
    assert_eq!(error, 0);
    let (found, error) = indexed(bench, &[1, 0, 1, -1], &[7, 100], &relative, &[0, 1, 2, 3]);
    assert_eq!((&found, error), (&expected, 0));
    assert_eq!(found[0].token, found[2].token);
    assert_eq!(bits(&found[3]), bits(&RowStats::default()));

    // The kernels report indices of rows, sequences and tokens that do not exist.
    for (index, sampling, draft, bit) in [
        (2, at(0), 0, 16),
        (-2, at(0), 0, 16),
        (i32::MAX, at(0), 0, 16),
        (0, at(0).relative_to(2), 0, 16),
        (0, at(0).relative_to(u32::MAX), 0, 16),
        (0, at(0), 20, 2),
        (0, at(0), i32::MAX, 2),
    ] {
        let (stats, error) = indexed(bench, &[index, 1], &[7, 100], &[sampling, at(105)], &[draft, -1]);
        assert_eq!(error, bit, "{index} {draft}");
        assert!((0..20).contains(&stats[0].token));
        assert_eq!(stats[0].draft_probability, if bit == 2 { 0.0 } else { stats[0].draft_probability });
        assert_eq!(stats[1].token, expected[0].token);
    }
}

#[test]
fn calibrated_logits_that_are_not_kept_cannot_be_cut() {
    for processor in processors() {
        check_discarded_logits(&bench(processor));
    }
}

fn check_discarded_logits(bench: &Bench) {
    let run = |params: SamplingParams, draft: i32, keep: bool| {
        let way = Way { draft, ..Way::drawn(params, 1) };
        let mut batch = Batch::<f32>::plain(vec![logits(1, 100, Shape::Bell(1.0))], vec![way]);
        batch.correction = Some(Correction {
            rank: 8,
            weight: noise(1, 800, 0.2).into_iter().map(bf16::from_f32).collect(),
            bias: None,
            hidden: vec![noise(2, 8, 1.0).into_iter().map(bf16::from_f32).collect()],
        });
        let outcome = batch.run(bench, keep);
        assert_eq!(outcome.logits == batch.rows, !keep);
        outcome
    };
    let one = SamplingParams::at_temperature(1.0);
    let cut = SamplingParams { top_k: 3, ..one };
    assert_eq!((run(cut, -1, false).error, run(cut, -1, false).stats[0].kept), (32, 100));
    assert_eq!((run(cut, -1, true).error, run(cut, -1, true).stats[0].kept), (0, 3));
    assert_eq!(run(one, 5, false).error, 32);
    assert_eq!(run(one, 5, true).error, 0);
    // Without truncation and a draft token, the statistics do not need the stored corrected logits.
    let (kept, discarded) = (run(one, -1, true), run(one, -1, false));
    assert_eq!((kept.stats, discarded.error), (discarded.stats, 0));
    assert_eq!(run(SamplingParams::GREEDY, 5, false).error, 0);
}

// --- Equal results on all runtimes -----------------------------------------------------------------------

#[test]
fn is_the_same_on_every_runtime() {
    let params = |temperature, top_k, top_p| SamplingParams { temperature, top_k, top_p, min_p: 0.0 };
    let kinds = [params(0.0, 0, 1.0), params(1.0, 0, 1.0), params(0.8, 40, 1.0), params(1.0, 0, 0.9)];
    for vocab in [100, 5001] {
        let ways = (0..16).map(|row| Way::drawn(kinds[row as usize / 4], row)).collect();
        let rows = (0..16).map(|row| logits(row, vocab, Shape::Bell(2.0))).collect();
        let plain = Batch::<f32>::plain(rows, ways);
        let halves = |seed, len, scale| noise(seed, len, scale).into_iter().map(bf16::from_f32).collect();
        let correction = Correction {
            rank: 24,
            weight: halves(1, vocab * 24, 0.3),
            bias: Some(noise(2, vocab, 1.0)),
            hidden: (0..16).map(|row| halves(50 + row, 24, 0.7)).collect(),
        };
        let calibrated = Batch { correction: Some(correction), ..plain.clone() };
        let run = |bench: &Bench| [plain.run(bench, false), calibrated.run(bench, true)];
        runtimes_agree(run, |expected, found| {
            for (found, expected) in found.iter().zip(expected) {
                let decisions = |outcome: &Outcome<f32>| -> Vec<(i32, i32)> {
                    outcome.stats.iter().map(|stats| (stats.token, stats.kept)).collect()
                };
                assert_eq!(decisions(found), decisions(expected), "{vocab} ids");
                close("logits", &found.logits.concat(), &expected.logits.concat(), 1e-5);
                let numbers = |s: &RowStats| [s.max, s.log_sum, s.probability, s.confidence, s.token_logit];
                for (found, expected) in found.stats.iter().zip(&expected.stats) {
                    close("statistics", &numbers(found), &numbers(expected), 1e-3);
                }
            }
        });
    }
}
