//! Tests of sampling that need the SIMT emulator: schedules, races, bytes, and the kernel that was chosen.

use flexdraft::kernels::Kernels;
use flexdraft::kernels::sampling::{Calibration, LogitRows, RowSampling, RowStats, Sample, workspace_len};
use flexdraft::runtime::simt::{Checking, Copies};
use flexdraft::runtime::{Limits, Simt, SimtOptions};
use flexdraft::sampling::SamplingParams;
use half::bf16;

use super::batch::{Batch, Correction, bench, check, poisoned_stats};
use super::generators::{Shape, logits, noise};
use super::way::Way;
use crate::processors::{Bench, Processor};

#[test]
fn the_large_tiles_are_for_devices_with_room_for_them() {
    let ways: Vec<Way> = (0..70).map(|seed| Way::drawn(SamplingParams::at_temperature(1.0), seed)).collect();
    let rows = (0..70).map(|seed| logits(seed, 130, Shape::Bell(2.0))).collect();
    let mut batch = Batch::<f32>::plain(rows, ways);
    batch.correction = Some(Correction {
        rank: 512,
        weight: noise(1, 130 * 512, 0.2).into_iter().map(bf16::from_f32).collect(),
        bias: None,
        hidden: (0..70).map(|r| noise(r, 512, 0.5).into_iter().map(bf16::from_f32).collect()).collect(),
    });
    let run = |kib: u32| {
        let options = SimtOptions { checking: Checking::Accesses, ..SimtOptions::default() };
        let bench = Bench::limited(Processor::Emulator, options, |_| Limits {
            multiprocessors: 4,
            shared_bytes_per_cta: kib << 10,
            shared_bytes_per_multiprocessor: (kib + 1) << 10,
        });
        let outcome = batch.run(&bench, true);
        (bench.emulator().unwrap().take_traffic()[0].kernel, outcome)
    };
    let (small, with_small) = run(99);
    let (large, with_large) = run(227);
    assert_eq!((small, large), ("calibrated_sample_f32_64x16", "calibrated_sample_f32_128x64"));
    assert_eq!(with_small, with_large);
}

#[test]
fn the_result_is_the_same_on_every_schedule_and_within_bounds() {
    let ways = [
        Way { draft: 3, ..Way::greedy() },
        Way { draft: 50, ..Way::drawn(SamplingParams::at_temperature(0.8), 5) },
        Way::drawn(SamplingParams { top_k: 20, top_p: 0.9, ..SamplingParams::at_temperature(1.2) }, 6),
        Way::drawn(SamplingParams { top_p: 0.95, min_p: 0.01, ..SamplingParams::at_temperature(1.0) }, 7),
    ];
    let rows = |vocab| (0..4).map(|seed| logits(seed, vocab, Shape::Bell(2.0))).collect();
    let plain = Batch::<f32>::plain(rows(1301), ways.to_vec());
    let mut calibrated = Batch::<bf16>::plain(rows(133), ways.to_vec());
    calibrated.correction = Some(Correction {
        rank: 200,
        weight: noise(1, 133 * 200, 0.2).into_iter().map(bf16::from_f32).collect(),
        bias: Some(noise(2, 133, 1.0)),
        hidden: (0..4).map(|r| noise(r, 200, 0.5).into_iter().map(bf16::from_f32).collect()).collect(),
    });
    let usual = bench(Processor::Emulator);
    let expected = (plain.run(&usual, false), calibrated.run(&usual, true));
    check(&expected.0, &ways);
    check(&expected.1, &ways);
    // This batch adds truncations that fall within a bin of the histogram, and truncations among ties.
    let crowded = Batch::<f32>::plain(
        vec![logits(9, 2200, Shape::Crowd), vec![1.0; 2200]],
        vec![Way::drawn(SamplingParams { top_p: 0.6, ..SamplingParams::at_temperature(1.0) }, 8); 2],
    );
    let expected_crowd = crowded.run(&usual, false);
    check(&expected_crowd, &crowded.ways);
    for (checking, copies, schedule) in [
        (Checking::Off, Copies::Late, 1),
        (Checking::Accesses, Copies::Eager, 2),
        (Checking::Accesses, Copies::Late, 0),
        (Checking::Accesses, Copies::Late, 7),
    ] {
        let bench = Bench::on(Processor::Emulator, SimtOptions { checking, copies, schedule });
        let found = (plain.run(&bench, false), calibrated.run(&bench, true));
        assert_eq!(found, expected, "{checking:?} {copies:?} {schedule}");
        assert_eq!(crowded.run(&bench, false), expected_crowd, "{checking:?} {copies:?} {schedule}");
    }
}

#[test]
fn the_pass_reads_what_it_needs_once() {
    let (rows, vocab, rank) = (3, 320, 72);
    let ways = vec![Way::drawn(SamplingParams::at_temperature(1.0), 5); rows];
    let mut batch =
        Batch::<f32>::plain((0..3).map(|seed| logits(seed, vocab, Shape::Bell(1.0))).collect(), ways);
    batch.correction = Some(Correction {
        rank,
        weight: noise(1, vocab * rank, 0.2).into_iter().map(bf16::from_f32).collect(),
        bias: None,
        hidden: (0..3).map(|r| noise(r, rank, 0.5).into_iter().map(bf16::from_f32).collect()).collect(),
    });
    let options = SimtOptions { checking: Checking::Accesses, ..SimtOptions::default() };
    let bench = Bench::on(Processor::Emulator, options);
    batch.run(&bench, true);
    let traffic = bench.emulator().unwrap().take_traffic();
    let of = |kernel: &str, operand: &str| {
        let entry = traffic.iter().find(|t| t.kernel == kernel && t.operand == operand).unwrap();
        (entry.read as usize, entry.written as usize)
    };
    let (pass, finish) = ("calibrated_sample_f32_64x16", "sample_finish_f32");
    assert_eq!(of(pass, "weight"), (vocab * rank * 2, 0));
    assert_eq!(of(pass, "hidden"), (rows * rank * 2, 0));
    assert_eq!(of(pass, "logits"), (rows * vocab * 4, rows * vocab * 4));
    let partials = workspace_len(rows, vocab, true).unwrap() * 4;
    assert_eq!(of(pass, "workspace"), (0, partials));
    assert_eq!(of(finish, "workspace"), (partials, 0));
    assert_eq!(of(finish, "stats"), (0, rows * size_of::<RowStats>()));
    // Without truncation and draft tokens, the second kernel of sampling does not read the logits again.
    assert_eq!(of(finish, "logits"), (0, 0));
}

/// If two rows of a launch correct the same logits, the result is one of the corrections or both, and race mode reports
/// the race. The host cannot check indices in device memory.
#[test]
fn a_row_of_logits_that_is_updated_twice() {
    let run = |checking| {
        let kernels = Kernels::new(Simt::new(SimtOptions { checking, ..SimtOptions::default() }));
        let stream = kernels.runtime().stream();
        let mut logits = vec![0.0f32; 2 * 24];
        let sampling = [RowSampling::new(&SamplingParams::GREEDY, None).unwrap(); 2];
        // The first row's correction adds 8 to every logit, the second row's 16.
        let hidden = [[bf16::from_f32(1.0); 8], [bf16::from_f32(2.0); 8]].concat();
        let weight = vec![bf16::from_f32(1.0); 20 * 8];
        let mut workspace = vec![f32::NAN; workspace_len(2, 20, true).unwrap()];
        let (mut stats, mut error) = ([poisoned_stats(); 2], [0]);
        let args = Sample {
            vocab: 20,
            stride: 24,
            logits: LogitRows::Update(stream.view_mut(&mut logits)),
            logit_index: Some(stream.view(&[1, 1])),
            sampling: stream.view(&sampling),
            starts: None,
            draft: None,
            calibration: Some(Calibration {
                rank: 8,
                hidden: stream.view(&hidden).into(),
                weight: stream.view(&weight).into(),
                bias: None,
            }),
            workspace: stream.view_mut(&mut workspace),
            stats: stream.view_mut(&mut stats),
            error: Some(stream.view_mut(&mut error)),
        };
        kernels.sample(&stream, args).map(|()| (logits, stats, error[0]))
    };
    let (logits, stats, error) = run(Checking::Off).unwrap();
    assert_eq!(error, 0);
    assert!(logits[..24].iter().chain(&logits[44..]).all(|&x| x == 0.0));
    assert!(logits[24..44].iter().all(|x| [8.0, 16.0, 24.0].contains(x)), "{logits:?}");
    assert!(stats.iter().all(|stats| (0..20).contains(&stats.token)));
    let error = run(Checking::Accesses).unwrap_err().to_string();
    assert!(error.contains("race") && error.contains("logits"), "{error}");
}
