use proptest::prelude::*;

use super::super::buckets::{COUNT, MAX_ROWS, bucket_of};
use super::super::simulated::{Algorithm, Simulated, Sum};
use super::*;

const RIGHT: Sum = Sum::Chunks(16);

/// Numbers of input columns of the layers of SmolLM2-135M and Qwen3-8B.
const WIDTHS: [usize; 4] = [576, 1536, 4096, 12_288];

/// Returns the order in which `schedule` sums a row: it must be the same at all row counts `rows`, and in
/// every place of a product.
fn order(algorithms: &[Algorithm], schedule: &Schedule, rows: impl Iterator<Item = usize>) -> Sum {
    let mut found = None;
    for rows in rows {
        for part in schedule.parts(rows) {
            for place in 0..part.rows.len() {
                let order = (algorithms[part.algorithm].order)(part.padded, place);
                let expected = *found.get_or_insert(order);
                assert_eq!(order, expected, "{schedule:?}: {rows} rows, place {place} of {part:?}");
            }
        }
    }
    found.unwrap()
}

fn chosen(trial: &mut Simulated, buckets: usize, kept: &[Timed]) -> Schedule {
    choose(trial, buckets, kept).unwrap().unwrap()
}

fn algorithms(schedule: &Schedule) -> Vec<usize> {
    match schedule {
        Schedule::Buckets(timed) => timed.iter().map(|timed| timed.algorithm).collect(),
        other => panic!("{other:?}"),
    }
}

/// Seconds per bucket of algorithms that are faster than the right algorithm: `FAST` in all buckets,
/// `FAST_IF_SMALL` in the first two buckets. A set with such an algorithm in those buckets would have another
/// order of sums.
const FAST: [f32; COUNT] = [1.0; COUNT];
const FAST_IF_SMALL: [f32; COUNT] = [1.0, 1.0, 50.0, 50.0, 50.0];
const SLOW: [f32; COUNT] = [2.0; COUNT];

fn by_bucket(seconds: [f32; COUNT]) -> impl Fn(usize) -> Option<f32> {
    move |rows| Some(seconds[bucket_of(rows)])
}

/// Returns wrong algorithms, which give some row other bits than the right algorithm, each in its own way.
fn wrong_ones() -> Vec<(&'static str, Algorithm)> {
    let depending = |wrong: fn(usize, usize) -> bool, other: Sum| {
        Algorithm::new(move |rows, place| if wrong(rows, place) { other } else { RIGHT }, by_bucket(FAST))
    };
    vec![
        ("another chunk of k", Algorithm::constant(Sum::Chunks(8), FAST_IF_SMALL)),
        ("a sum in halves", Algorithm::constant(Sum::Split(2), FAST_IF_SMALL)),
        ("a split by the row count", depending(|rows, _| rows > 40, Sum::Split(2))),
        ("a split of single rows", depending(|rows, _| rows == 1, Sum::Split(4))),
        ("the edge of a tile", depending(|rows, place| place >= rows / 64 * 64 && rows > 64, Sum::Chunks(8))),
        ("an offset within the tile", depending(|_, place| place % 16 >= 8, Sum::Chunks(8))),
    ]
}

#[test]
fn wrong_orders_are_found_and_the_right_one_is_kept() {
    for cols in WIDTHS {
        for seed in 0..100 {
            let mut trial = Simulated::new(seed, cols);
            for (name, wrong) in wrong_ones() {
                trial.algorithms = vec![wrong, Algorithm::constant(RIGHT, SLOW)];
                let schedule = chosen(&mut trial, 4, &[]);
                assert_eq!(algorithms(&schedule).len(), 4, "{name}, seed {seed}: {schedule:?}");
                let found = order(&trial.algorithms, &schedule, 1..=256);
                assert_eq!(found, RIGHT, "{name}, seed {seed}, {cols} columns: {schedule:?}");
            }
            // The fastest algorithm, which is right, is selected although wrong algorithms are among the candidates.
            trial.algorithms = wrong_ones().into_iter().map(|(_, wrong)| wrong).collect();
            trial.algorithms.push(Algorithm::constant(RIGHT, [0.5; COUNT]));
            assert_eq!(algorithms(&chosen(&mut trial, 4, &[])), [6; 4], "seed {seed}, {cols} columns");
        }
    }
}

#[test]
fn wrong_orders_are_found_in_the_largest_bucket_and_in_logits() {
    for rounds in [true, false] {
        let mut trial = Simulated::new(1, 576);
        trial.rounds = rounds;
        let wrong: [fn(usize, usize) -> bool; 4] = [
            |rows, _| rows > 1500,
            |rows, place| rows > 300 && place >= rows / 128 * 128,
            |_, place| place > 1024,
            |rows, place| rows == MAX_ROWS && place == MAX_ROWS - 1,
        ];
        for wrong in wrong {
            let order_of = move |rows, place| if wrong(rows, place) { Sum::Split(2) } else { RIGHT };
            trial.algorithms =
                vec![Algorithm::new(order_of, by_bucket(FAST)), Algorithm::constant(RIGHT, SLOW)];
            let schedule = chosen(&mut trial, COUNT, &[]);
            assert_eq!(algorithms(&schedule), [0, 0, 0, 0, 1]);
            order(&trial.algorithms, &schedule, [1, 2, 255, 257, 300, 1501, 2048, 2049, 5000].into_iter());
        }
    }
}

/// Rounding to bf16 hides the order in which noise is summed, so a trial also uses terms that cancel.
#[test]
fn orders_show_in_terms_that_cancel_and_hide_in_noise() {
    for cols in WIDTHS {
        let mut trial = Simulated::new(7, cols);
        for other in [Sum::Chunks(8), Sum::Split(2)] {
            let hidden = trial.differing(TrialOperands::Noise, RIGHT, other);
            let shown = trial.differing(TrialOperands::Cancelling, RIGHT, other);
            println!("{cols} columns, {other:?}: {hidden:.4} of noise, {shown:.4} of terms that cancel");
            assert!(hidden < 0.02, "{cols}, {other:?}: {hidden}");
            assert!(shown > 0.4, "{cols}, {other:?}: {shown}");
        }
    }
}

#[test]
fn the_fastest_set_may_mix_algorithms() {
    let table = |seconds: [[f32; COUNT]; 3]| {
        let [a, b, c] = seconds;
        let equal = [Algorithm::constant(RIGHT, a), Algorithm::constant(RIGHT, b)];
        let [a, b] = equal;
        Simulated::new(1, 64).offering(vec![a, b, Algorithm::constant(Sum::Chunks(8), c)])
    };
    let (a, b) = ([1.0, 9.0, 9.0, 1.0, 9.0], [9.0, 1.0, 1.0, 9.0, 1.0]);
    let mut trial = table([a, b, [1.5; COUNT]]);
    let schedule = chosen(&mut trial, COUNT, &[]);
    assert_eq!(algorithms(&schedule), [0, 1, 1, 0, 1]);
    assert_eq!(schedule.seconds(1), Some(1.0));
    // A set of algorithms with another order of sums is selected if its seconds have the smaller sum,
    // although neither set is faster in every bucket.
    assert_eq!(algorithms(&chosen(&mut table([a, b, [0.9, 0.9, 0.9, 1.2, 0.9]]), COUNT, &[])), [2; COUNT]);
    // The seconds of buckets that are not requested do not count.
    assert_eq!(algorithms(&chosen(&mut table([a, a, [1.5, 0.5, 0.5, 0.5, 99.0]]), 2, &[])), [2; 2]);
}

#[test]
fn a_survey_tells_classes() {
    let unsteady =
        Algorithm::new(|_, place| if place % 2 == 0 { RIGHT } else { Sum::Split(2) }, by_bucket(FAST));
    let offered = vec![
        Algorithm::constant(RIGHT, FAST),
        unsteady,
        Algorithm::new(|rows, _| if rows == 1 { RIGHT } else { Sum::Chunks(8) }, by_bucket(SLOW)),
    ];
    let (found, _) = survey(&mut Simulated::new(1, 576).offering(offered), 2, &[]).unwrap();
    let found: Vec<_> = found.iter().map(|one| (one.algorithm, one.bucket, one.class)).collect();
    // Products of the first bucket have a single row, which is always in the first place.
    let expected =
        [(0, 0, Some(0)), (0, 1, Some(0)), (1, 0, Some(0)), (1, 1, None), (2, 0, Some(0)), (2, 1, Some(1))];
    assert_eq!(found, expected);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// The selected set has the least sum of seconds of all assignments of algorithms to buckets that sum a
    /// row in one order.
    #[test]
    fn no_other_set_is_faster(
        table in prop::collection::vec((0usize..3, prop::array::uniform5(prop::option::weighted(0.9, 1u8..40))), 1..5),
    ) {
        let sums = [RIGHT, Sum::Chunks(8), Sum::Split(2)];
        let offered = table.iter().map(|&(sum, seconds)| {
            let seconds = move |rows| seconds[bucket_of(rows)].map(f32::from);
            Algorithm::new(move |_, _| sums[sum], seconds)
        });
        let mut trial = Simulated::new(3, 64).offering(offered.collect());
        let mut least: Option<f32> = None;
        for choice in 0..table.len().pow(COUNT as u32) {
            let set: Vec<usize> = (0..COUNT as u32).map(|b| choice / table.len().pow(b) % table.len()).collect();
            let seconds: Option<f32> = set.iter().enumerate().map(|(b, &a)| table[a].1[b].map(f32::from)).sum();
            if let Some(seconds) = seconds.filter(|_| set.iter().all(|&a| table[a].0 == table[set[0]].0)) {
                least = Some(least.map_or(seconds, |least| least.min(seconds)));
            }
        }
        let schedule = choose(&mut trial, COUNT, &[]).unwrap();
        match (least, &schedule) {
            (Some(least), Some(Schedule::Buckets(set))) => {
                let sum: f32 = set.iter().map(|timed| timed.seconds.unwrap()[0]).sum();
                prop_assert_eq!((sum, set.len()), (least, COUNT));
            }
            (Some(_), _) => prop_assert!(false, "{:?}", schedule),
            // A schedule is found if some algorithm can compute the products of one of the first four
            // buckets.
            (None, _) => {
                let none = |seconds: &[Option<u8>; COUNT]| seconds[..4].iter().all(Option::is_none);
                prop_assert!(schedule.is_some() || table.iter().all(|(_, seconds)| none(seconds)));
            }
        }
        if let Some(schedule) = schedule {
            let rows = [1, 2, 3, 16, 17, 30, 64, 65, 200, 256, 257, 2048, 2049];
            order(&trial.algorithms, &schedule, rows.into_iter());
        }
    }
}

#[test]
fn where_no_set_is_equal_products_have_one_row_count() {
    // The algorithm sums in another order in each bucket.
    let sums = [RIGHT, Sum::Chunks(8), Sum::Chunks(64), Sum::Split(2), Sum::Split(4)];
    let any =
        |seconds: [f32; COUNT]| Algorithm::new(move |rows, _| sums[bucket_of(rows)], by_bucket(seconds));
    let every = || [1, 2, 15, 16, 17, 63, 64, 65, 100, 256, 257, 1000, 2048, 2500].into_iter();

    let mut trial = Simulated::new(1, 576).offering(vec![any([1.0; COUNT])]);
    let schedule = chosen(&mut trial, COUNT, &[]);
    // If all products take equal time, 256 rows at once are best.
    assert_eq!(schedule, Schedule::Padded { algorithm: 0, rows: 256, seconds: Some(1.0) });
    order(&trial.algorithms, &schedule, every());

    // If larger products cost more, 64 rows are best.
    trial.algorithms = vec![any([1.0, 1.0, 1.0, 30.0, 99.0])];
    let schedule = chosen(&mut trial, COUNT, &[]);
    assert!(matches!(schedule, Schedule::Padded { rows: 64, .. }), "{schedule:?}");

    // If the memory for the model's logits holds only 100 rows, 64 rows are best.
    trial.algorithms = vec![any([1.0; COUNT])];
    trial.most_rows = 100;
    let schedule = chosen(&mut trial, COUNT, &[]);
    assert!(matches!(schedule, Schedule::Padded { rows: 64, .. }), "{schedule:?}");
    trial.most_rows = usize::MAX;

    // If a row's place changes its bits in products of 64 and 256 rows, 16 rows at once are left.
    let order_of =
        move |rows, place| if rows > 16 && place % 16 > 12 { Sum::Chunks(8) } else { sums[bucket_of(rows)] };
    trial.algorithms = vec![Algorithm::new(order_of, by_bucket([1.0; COUNT]))];
    let schedule = chosen(&mut trial, COUNT, &[]);
    assert!(matches!(schedule, Schedule::Padded { rows: 16, .. }), "{schedule:?}");
    order(&trial.algorithms, &schedule, every());

    // If a row's place changes its bits in all products of several rows, rows are multiplied alone.
    let order_of = move |rows, place| if rows > 1 && place == rows - 1 { Sum::Chunks(64) } else { RIGHT };
    trial.algorithms = vec![Algorithm::new(order_of, by_bucket([1.0; COUNT]))];
    let schedule = chosen(&mut trial, COUNT, &[]);
    assert_eq!(algorithms(&schedule), [0]);
    order(&trial.algorithms, &schedule, every());

    // An algorithm that sums in one order only up to 64 rows computes larger products in parts.
    let order_of = move |rows, _| if rows > 64 { sums[bucket_of(rows)] } else { RIGHT };
    trial.algorithms = vec![Algorithm::new(order_of, by_bucket([1.0, 1.0, 1.0, 99.0, 99.0]))];
    let schedule = chosen(&mut trial, COUNT, &[]);
    assert_eq!(algorithms(&schedule), [0, 0, 0]);
    order(&trial.algorithms, &schedule, every());
}

#[test]
fn an_algorithm_whose_results_change_is_refused() {
    let calls = std::cell::Cell::new(0);
    let unsteady = move |_, _| {
        calls.set(calls.get() + 1);
        if calls.get() % 50 == 0 { Sum::Split(2) } else { RIGHT }
    };
    let unsteady = Algorithm::new(unsteady, by_bucket(FAST));
    let mut trial = Simulated::new(1, 576).offering(vec![unsteady, Algorithm::constant(RIGHT, SLOW)]);
    assert_eq!(algorithms(&chosen(&mut trial, COUNT, &[])), [1; COUNT]);
}

#[test]
fn noise_and_the_models_weights_are_tried_too() {
    for operands in [TrialOperands::Noise, TrialOperands::Model] {
        let offered = vec![Algorithm::constant(RIGHT, FAST), Algorithm::constant(RIGHT, SLOW)];
        let mut trial = Simulated::new(1, 576).offering(offered);
        trial.rounds = false;
        assert_eq!(algorithms(&chosen(&mut trial, COUNT, &[])), [0; COUNT]);
        trial.elsewhere = Some((operands, 0));
        assert_eq!(algorithms(&chosen(&mut trial, COUNT, &[])), [0, 0, 0, 1, 1], "{operands:?}");
    }
}

#[test]
fn without_algorithms_there_is_no_way() {
    assert_eq!(choose(&mut Simulated::new(1, 64), COUNT, &[]), Ok(None));
}

#[test]
fn what_was_chosen_stays() {
    let slow_if_large = [1.0, 1.0, 9.0, 9.0, 9.0];
    let offered = || {
        vec![
            Algorithm::constant(RIGHT, slow_if_large),
            Algorithm::constant(Sum::Chunks(8), [2.0, 2.0, 1.0, 1.0, 1.0]),
            Algorithm::constant(RIGHT, [3.0; COUNT]),
        ]
    };
    let mut trial = Simulated::new(1, 576).offering(offered());
    let Schedule::Buckets(first) = chosen(&mut trial, 2, &[]) else { panic!("padded") };
    assert_eq!(first.iter().map(|timed| timed.algorithm).collect::<Vec<_>>(), [0, 0]);
    let more = chosen(&mut trial, COUNT, &first);
    // If all buckets were requested at once, the other order of sums would be faster; now its bits would
    // differ from the bits of the buckets that were selected before.
    assert_eq!(algorithms(&more), [0, 0, 2, 2, 2]);
    assert_eq!(algorithms(&chosen(&mut trial, COUNT, &[])), [1; COUNT]);
    // If no algorithm agrees with the algorithms that were selected before, larger products are computed in
    // parts.
    trial.algorithms = offered();
    trial.algorithms.truncate(2);
    trial.algorithms[0].order = Box::new(|rows, _| if rows > 16 { Sum::Split(2) } else { RIGHT });
    assert_eq!(algorithms(&chosen(&mut trial, COUNT, &first)), [0, 0]);
}

#[test]
fn time_ends_the_timing_and_not_the_checks() {
    let faulty = Algorithm::new(|rows, _| if rows > 3 { Sum::Split(2) } else { RIGHT }, by_bucket(FAST));
    let offered = vec![faulty, Algorithm::constant(RIGHT, SLOW), Algorithm::constant(RIGHT, FAST)];
    let mut trial = Simulated::new(1, 576).offering(offered);
    trial.seconds_a_time = 0.07;
    let schedule = chosen(&mut trial, COUNT, &[]);
    // Two algorithms are timed nine times each before one second has passed; the third has no times.
    assert_eq!(algorithms(&schedule), [0, 1, 1, 1, 1]);
    assert!(schedule.seconds(1).is_some());
    // If no time is left for timing, the checks are the same.
    trial.elapsed = 10.0;
    let schedule = chosen(&mut trial, COUNT, &[]);
    order(&trial.algorithms, &schedule, 1..=300);
    assert_eq!(schedule.seconds(1), None);
}

/// A trial computes a limited number of products and rows, from which its documentation computes its
/// duration.
#[test]
fn a_trial_is_bounded() {
    let equal = (0..24).map(|index| Algorithm::constant(RIGHT, [1.0 + index as f32; COUNT]));
    let mut trial = Simulated::new(1, 64).offering(equal.collect());
    chosen(&mut trial, COUNT, &[]);
    println!("{} products, {} rows", trial.products, trial.rows);
    assert!(trial.products < 2600 && trial.rows < 75_000, "{} products, {} rows", trial.products, trial.rows);
}
