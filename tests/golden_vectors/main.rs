//! Tests that compare the SIMT emulator's models of PTX instructions with the recorded results of GPUs for the same
//! inputs. The recordings are in `tests/fixtures/ptx`, one file per device. Data movement and conversions must agree in
//! every bit; sums, powers and CUDA's math functions within the tolerances that `instructions.rs` derives.
//!
//! If a GPU is present, its results are compared directly, and written as a recording to the directory that
//! `FLEXDRAFT_GOLDEN_RESULTS` names; `benches/gpu/fold.py` copies the recording to the fixtures.
//! `FLEXDRAFT_REQUIRE_GPU=1` makes a missing GPU an error.

#![cfg(feature = "simt")]
#![allow(clippy::unwrap_used, missing_docs)]

#[allow(dead_code)]
#[path = "../support/gpu.rs"]
mod gpu;
mod instructions;
mod recording;

use std::f64::consts::PI;
use std::io::Write;
use std::path::{Path, PathBuf};

use flexdraft::runtime::simt::{Checking, Copies};
use flexdraft::runtime::{Simt, SimtOptions};
use gpu::gpu;
use half::f16;
use recording::Recording;

/// Returns the emulator without checks, and the emulator with checks, late copies and another order of threads.
fn hosts() -> [Simt; 2] {
    let watched = SimtOptions { checking: Checking::Accesses, copies: Copies::Late, schedule: 3 };
    [Simt::new(SimtOptions::default()), Simt::new(watched)]
}

/// Compares the emulator's instructions with a recording; an error names the first difference.
fn models_agree(recording: &Recording) -> Result<(), String> {
    for simt in hosts() {
        for instruction in instructions::all() {
            let found = instruction.run(&simt, &simt.stream()).unwrap();
            recording.agrees(&instruction, &found)?;
        }
    }
    Ok(())
}

#[test]
fn the_models_agree_with_every_recording() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/ptx");
    let files = std::fs::read_dir(&directory).into_iter().flatten();
    let paths: Vec<PathBuf> = files.map(|file| file.unwrap().path()).collect();
    if paths.is_empty() {
        let _ = writeln!(std::io::stderr(), "\n*** SKIPPED: no GPU's results are recorded yet ***");
    }
    for path in paths {
        models_agree(&Recording::read(&path)).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
}

#[test]
fn a_gpu_agrees_with_the_models() {
    let Some(gpu) = gpu() else { return };
    let (context, cuda) = (&gpu.context, &*gpu.cuda);
    let device = context.name().unwrap();
    let recording = Recording::of(&device, &instructions::all(), cuda, &context.default_stream());
    if let Some(directory) = std::env::var_os("FLEXDRAFT_GOLDEN_RESULTS") {
        recording.write(&Path::new(&directory).join("ptx.json"));
    }
    // The number of equal bits of mma.sync and wgmma tells which kernels' results can be compared bit by bit. Different
    // bits are no failure.
    let all = instructions::all();
    let wgmma = all.iter().find(|instruction| instruction.kernel == instructions::WGMMA).unwrap();
    let [written, equal] = instructions::equal_to_mma(&wgmma.run(cuda, &context.default_stream()).unwrap());
    println!("wgmma: {written} words, {equal} of them with the bits of mma.sync");
    let has_wgmma = context.compute_capability().unwrap() == (9, 0);
    assert_eq!(written > 0, has_wgmma, "wgmma is what compute capability 9.0 has");
    models_agree(&recording).unwrap();
}

/// A recording with `wgmma` results agrees with the emulator if the results are within the tolerance of products. This
/// machine has no `wgmma`, so results of `mma.sync` stand in for them, some changed by a unit in the last place.
#[test]
fn products_of_a_warpgroup_are_compared_with_its_warps() {
    let [simt, _] = hosts();
    let all = instructions::all();
    let wgmma = all.iter().find(|instruction| instruction.kernel == instructions::WGMMA).unwrap();
    let model = wgmma.run(&simt, &simt.stream()).unwrap();
    assert_eq!(instructions::equal_to_mma(&model), [0, 0], "the model has no wgmma");
    let recorded = |change: fn(usize, u32) -> u32| {
        let mut output = model.clone();
        for words in output.chunks_mut(12) {
            for i in 4..12 {
                words[i] = words[i % 4];
            }
        }
        // Only the second case is changed, because its results are rounded.
        for (i, word) in output[wgmma.words_out..][..wgmma.words_out].iter_mut().enumerate() {
            *word = change(i, *word);
        }
        output
    };
    let close = recorded(|i, word| if i % 12 == 7 { word + 1 } else { word });
    let words = 8 * model.len() / 12;
    assert_eq!(instructions::equal_to_mma(&close), [words, words - wgmma.words_out / 12]);
    wgmma.compare(&model, &close).unwrap();
    wgmma.compare(&close, &model).unwrap();
    // Planted mistake: results in the wrong rows, as a wrong matrix descriptor would give.
    for place in 4..12 {
        let mut wrong = recorded(|_, word| word);
        for pair in wrong[wgmma.words_out..][..wgmma.words_out].chunks_mut(24) {
            pair.swap(place, place + 12);
        }
        let error = wgmma.compare(&model, &wrong).unwrap_err();
        assert!(error.contains("case 1") && error.contains("wgmma"), "{error}");
        wgmma.compare(&wrong, &model).unwrap_err();
    }
}

/// Returns the recording with digit `digit` of a kernel's first case changed to `to`.
fn damaged(recording: &Recording, kernel: &str, digit: usize, to: char) -> Recording {
    let text = serde_json::to_string(recording).unwrap();
    let mut copy: Recording = serde_json::from_str(&text).unwrap();
    let case = &mut copy.instructions.get_mut(kernel).unwrap().output[0];
    assert_ne!(case.as_bytes()[digit] as char, to);
    case.replace_range(digit..=digit, &to.to_string());
    copy
}

/// Tests the recording of results, the recording's file and the comparison, with the SIMT emulator in place of a GPU.
#[test]
fn recordings_are_read_as_they_were_written_and_differences_are_found() {
    let [simt, _] = hosts();
    let all = instructions::all();
    let recording = Recording::of("no GPU", &all, &simt, &simt.stream());
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("results/ptx.json");
    recording.write(&path);
    assert_eq!(Recording::read(&path), recording);
    models_agree(&recording).unwrap();

    // The test plants a wrong digit in each instruction's first case, which the comparison must find. Results are
    // little-endian words, written from the highest digit on.
    for instruction in &all {
        let digits = &recording.instructions[instruction.kernel].output[0];
        let other = |digit: usize| if digits.as_bytes()[digit] == b'3' { '4' } else { '3' };
        let error = models_agree(&damaged(&recording, instruction.kernel, 9, other(9))).unwrap_err();
        assert!(error.contains(instruction.kernel) && error.contains("case 0"), "{error}");
    }
    // Sums of small integers are exact, so even a wrong last bit must be found.
    let sums = &recording.instructions["golden_mma_m16n8k16"].output[0];
    let last = if sums.as_bytes()[7] == b'1' { '2' } else { '1' };
    models_agree(&damaged(&recording, "golden_mma_m16n8k16", 7, last)).unwrap_err();

    let mut of_another = Recording::read(&path);
    of_another.instructions.get_mut("golden_exp2_approx").unwrap().input_hash = "0".into();
    assert!(models_agree(&of_another).unwrap_err().contains("of another input"));
    of_another.instructions.clear();
    assert!(models_agree(&of_another).unwrap_err().contains("not in the recording"));
}

/// The stand-ins for CUDA's math functions are as close to f64 results as the comparison with a GPU assumes, and the
/// kernel passes its arguments to the right functions.
#[test]
fn stand_ins_are_within_an_ulp() {
    let [simt, _] = hosts();
    let all = instructions::all();
    let math = all.iter().find(|instruction| instruction.kernel == "golden_math").unwrap();
    let exact: [fn(f64) -> f64; 7] = [
        f64::exp,
        f64::ln,
        f64::ln_1p,
        f64::log2,
        |x| (PI * x).cos(),
        |x| (PI * x).sin(),
        |x| 1.0 / x.sqrt(),
    ];
    let found = math.run(&simt, &simt.stream()).unwrap();
    for (i, (x, found)) in math.input.iter().zip(&found).enumerate() {
        let (x, found) = (f32::from_bits(*x), f32::from_bits(*found));
        let exact = exact[i % 7](f64::from(x));
        let ulp = (f64::from(exact.abs() as f32) * f64::from(f32::EPSILON)).max(f64::from(f32::from_bits(1)));
        let same = match exact.is_finite() {
            true => (f64::from(found) - exact).abs() <= ulp,
            false => f64::from(found) == exact || (found.is_nan() && exact.is_nan()),
        };
        assert!(same, "function {} of {x}: {found}, not {exact}", i % 7);
    }
}

/// Rounding to bf16 agrees with another implementation, except for NaN: the PTX ISA has a single canonical NaN.
#[test]
fn the_model_of_conversion_rounds_as_half_does() {
    let [simt, _] = hosts();
    let all = instructions::all();
    let conversion = all.iter().find(|instruction| instruction.kernel == "golden_cvt_rn_bf16").unwrap();
    let found = conversion.run(&simt, &simt.stream()).unwrap();
    let rounded = |word: u32| match f32::from_bits(word) {
        x if x.is_nan() => 0x7fff,
        x => u32::from(half::bf16::from_f32(x).to_bits()),
    };
    for (pair, found) in conversion.input.chunks(2).zip(found.chunks(2)) {
        let [low, high] = [rounded(pair[0]), rounded(pair[1])];
        assert_eq!(found, [low, high << 16 | low], "{pair:#x?}");
    }
}

/// Rounding to f16 agrees with another implementation, and so does the way back: for every number of f16, and for the
/// ties between neighbours and the numbers beside the ties. NaN becomes the single canonical NaN.
#[test]
fn the_models_of_conversion_to_and_from_f16_agree_with_half() {
    let [simt, _] = hosts();
    let mut conversion =
        instructions::all().into_iter().find(|instruction| instruction.kernel == "golden_cvt_f16").unwrap();
    for bits in 0..0x7c00u32 {
        let [own, next] = [bits, bits + 1].map(|bits| f16::from_bits(bits as u16).to_f32());
        // The tie between the largest number and infinity is where the next number would be.
        let next = if next.is_infinite() { 65536.0 } else { next };
        let tie = ((own + next) / 2.0).to_bits();
        let sign = (bits % 2) << 31;
        conversion.input.extend([own.to_bits(), tie - 1, tie, tie + 1].map(|word| word | sign));
    }
    let found = conversion.run(&simt, &simt.stream()).unwrap();
    let rounded = |word: u32| match f32::from_bits(word) {
        x if x.is_nan() => f16::from_bits(0x7fff),
        x => f16::from_f32(x),
    };
    for (pair, found) in conversion.input.chunks(2).zip(found.chunks(4)) {
        let [low, high] = [rounded(pair[0]), rounded(pair[1])];
        let packed = u32::from(high.to_bits()) << 16 | u32::from(low.to_bits());
        assert_eq!(found[..2], [u32::from(low.to_bits()), packed], "{pair:#x?}");
        for (found, half) in found[2..].iter().zip([low, high]) {
            let (found, expected) = (f32::from_bits(*found), half.to_f32());
            assert!(
                found.to_bits() == expected.to_bits() || half.is_nan() && found.is_nan(),
                "{half}: {found}"
            );
        }
    }
}

/// The inputs of the instructions exercise the tolerances: they give rounded results, exact results, NaN and infinity.
/// One unit in the last place is within the tolerance of rounded results.
#[test]
fn the_cases_are_of_every_kind() {
    let [simt, _] = hosts();
    for instruction in instructions::all() {
        // The cases whose results are exact: every fifth case of products, and the first case of powers.
        let is_exact = |case: usize| match instruction.kernel {
            "golden_mma_m16n8k16" | "golden_mma_m16n8k16_f16" | instructions::WGMMA => case.is_multiple_of(5),
            "golden_exp2_approx" => case == 0,
            _ => true,
        };
        let output = instruction.run(&simt, &simt.stream()).unwrap();
        let mut off = output.clone();
        for (i, word) in off.iter_mut().enumerate() {
            let value = f32::from_bits(*word);
            let is_written = *word != instructions::UNWRITTEN;
            if is_written && !is_exact(i / instruction.words_out) && value.is_finite() && value != 0.0 {
                *word += 1;
            }
        }
        instruction.compare(&off, &output).unwrap();
        let changed = off.iter().zip(&output).filter(|(off, word)| off != word).count();
        if !is_exact(1) {
            let written = output.iter().filter(|word| **word != instructions::UNWRITTEN).count();
            assert!(changed > written / 2, "{}: {changed} results are rounded", instruction.kernel);
            let values: Vec<f32> = output.iter().map(|word| f32::from_bits(*word)).collect();
            assert!(values.iter().any(|x| x.is_nan()) && values.iter().any(|x| x.is_infinite()));
        }
    }
}
