//! Tests of the floors with which the GPU benchmark compares kernels: their values, and the bytes that the SIMT
//! emulator sees the benchmark's cases read and write.

use std::marker::PhantomData;

use flexdraft::kernels::Kernels;
use flexdraft::kernels::attention::DEFAULT_SPLIT;
use flexdraft::runtime::simt::{Checking, Traffic};
use flexdraft::runtime::{Simt, SimtOptions};
use half::bf16;

use crate::cases::Case;
use crate::cases::acceptance::Acceptance;
use crate::cases::attention::Attention;
use crate::cases::chain::Chain;
use crate::cases::glue::{Append, Elementwise};
use crate::cases::sampling::{Sampling, Stored};
use crate::cases::selection::{Rotations, Selection};
use crate::floor::{self, AttentionRows, Bound, Calibrated, Floor, Heads, Peaks, Scan};
use crate::machine::Machine;
use crate::record::{self, Device, Line, Measured, Record};
use crate::support::planted::{Run, counting};

/// Returns the bytes that the launches of a case read and write, after checking that a second run moves the same bytes.
fn counted(case: &impl Case) -> Vec<Traffic> {
    let options = SimtOptions { checking: Checking::Accesses, ..SimtOptions::default() };
    let kernels = Kernels::new(Simt::new(options));
    let stream = kernels.runtime().stream();
    let machine = Machine { kernels, stream };
    let mut prepared = case.prepare(&machine).unwrap();
    let mut count = || {
        machine.kernels.runtime().take_traffic();
        prepared.restore().unwrap();
        prepared.launch().unwrap();
        machine.kernels.runtime().take_traffic()
    };
    let first = count();
    assert_eq!(count(), first, "{}: launches differ", record::label(&Measured::of(case).shape));
    first
}

/// Checks that the launches read and write each touched byte of these operands about once (at most 1.1 times). The
/// number of distinct bytes alone would not show that a kernel reads its input twice.
fn streams(traffic: &[Traffic], operands: &[&str]) -> Result<(), String> {
    for operand in operands {
        let mut moved = 0;
        for t in traffic.iter().filter(|t| t.operand == *operand) {
            for (what, distinct, total) in
                [("read", t.read, t.read_total), ("written", t.written, t.written_total)]
            {
                moved += distinct;
                if total as f64 > 1.1 * distinct as f64 {
                    return Err(format!("{}: {distinct} bytes of `{operand}` {what} as {total}", t.kernel));
                }
            }
        }
        if moved == 0 {
            return Err(format!("`{operand}` is not used"));
        }
    }
    Ok(())
}

/// Bytes of tables and partial results that a kernel moves and its floor leaves out.
#[derive(Clone, Copy, Default)]
struct Beside {
    read: u64,
    written: u64,
}

/// Checks that a case moves the bytes that its floor counts, plus at most a tenth and the bytes `beside` the floor, and
/// that it moves the `streamed` operands once.
fn at_the_floor(case: &impl Case, beside: Beside, streamed: &[&str]) {
    let (traffic, floor) = (counted(case), case.floor());
    let name = format!("{} {}", case.kernel(), record::label(&Measured::of(case).shape));
    let sum = |of: fn(&Traffic) -> u64| traffic.iter().map(of).sum::<u64>();
    let read = (sum(|t| t.read), floor.read, beside.read, "read");
    let written = (sum(|t| t.written), floor.written, beside.written, "written");
    for (found, least, beside, what) in [read, written] {
        let name =
            format!("{name}: {found} bytes {what}, and the floor counts {least} and {beside} beside it");
        assert!(found >= least, "{name}");
        assert!(found - beside.min(found) <= least + least / 10, "{name}");
    }
    streams(&traffic, streamed).unwrap_or_else(|problem| panic!("{name}: {problem}"));
}

#[test]
fn a_second_pass_is_found() {
    let simt = Simt::new(SimtOptions { checking: Checking::Accesses, ..SimtOptions::default() });
    let check = |kernel| {
        Run::new(counting(256), 256, 4, 64).on(&simt, kernel).unwrap();
        streams(&simt.take_traffic(), &["in", "out"])
    };
    assert_eq!(check("planted_add_largest"), Ok(()));
    let problem = "planted_add_largest_reading_twice: 1024 bytes of `in` read as 2048";
    assert_eq!(check("planted_add_largest_reading_twice"), Err(problem.into()));
}

#[test]
fn attention() {
    let case = |batch, context, candidates, groups, head_dim| Attention {
        batch,
        context,
        candidates,
        groups,
        slots: 8,
        q_heads: 4,
        kv_heads: 2,
        head_dim,
        page_size: 32,
        split: DEFAULT_SPLIT,
        half: PhantomData::<bf16>,
    };
    // In these cases attention does not divide a sequence: its rows fit in one block, and one work item reads all its
    // keys, at least 300 kilobytes.
    let rows = [
        (2, 600, 1, 0, 64),
        (2, 300, 0, 1, 64),
        (2, 2000, 3, 2, 64),
        (2, 300, 0, 1, 128),
        (2, 600, 3, 2, 128),
    ];
    for (batch, context, candidates, groups, head_dim) in rows {
        let case = case(batch, context, candidates, groups, head_dim);
        at_the_floor(&case, Beside::default(), &["k cache", "v cache", "qkv", "out"]);
    }
    // If the batch is a single sequence, attention divides its keys; the partial results are the states of 3 splits and
    // of the slots, for 4 query heads of 8 slots. Each of them needs q.
    let states = (3 + 1) * 8 * 4 * (64 + 2) * 4;
    let beside = Beside { read: states, written: states };
    at_the_floor(&case(1, 1100, 0, 1, 64), beside, &["k cache", "v cache", "out"]);
}

/// Vocabulary of the sampling and acceptance cases: a row of logits has 128 kilobytes in f32 and half of that in bf16;
/// W2 (with a vocabulary of 2048) has 512 kilobytes.
const VOCAB: usize = 32_768;

#[test]
fn sampling() {
    sampling_of(PhantomData::<f32>);
    sampling_of(PhantomData::<bf16>);
}

fn sampling_of<L: Stored>(logits: PhantomData<L>) {
    let calibrator = PhantomData::<L::Calibrator>;
    for rows in [1, 3] {
        // The first launch of sampling passes five numbers per 1024 ids to the second launch.
        let lines = (rows * VOCAB / 1024 * 5 * 4) as u64;
        let case = Sampling { rows, vocab: VOCAB, rank: 0, truncated: false, logits, calibrator };
        at_the_floor(&case, Beside { read: lines, written: lines }, &["logits"]);
    }
    // With the calibrator, the first launch of sampling passes five numbers per 64 ids to the second.
    let (rows, vocab) = (3, 2048);
    let lines = (rows * vocab / 64 * 5 * 4) as u64;
    let case = Sampling { rows, vocab, rank: 128, truncated: false, logits, calibrator };
    at_the_floor(&case, Beside { read: lines, written: lines }, &["weight", "logits"]);
    // With truncation, sampling reads the logits again, so the counted bytes must be above the floor.
    let traffic = counted(&Sampling { rows: 2, vocab: 6144, rank: 0, truncated: true, logits, calibrator });
    assert!(traffic.iter().map(|t| t.read).sum::<u64>() > (2 * 6144 * size_of::<L>()) as u64);
    assert!(streams(&traffic, &["logits"]).is_err());
}

#[test]
fn acceptance() {
    acceptance_of(PhantomData::<f32>);
    acceptance_of(PhantomData::<bf16>);
}

fn acceptance_of<L: Stored>(logits: PhantomData<L>) {
    // Acceptance has partial results per chunk of 2048 ids: a score and a token, and with `block` a sum for each draft
    // token except the last. Each sequence also has a counter of finished chunks.
    let (drafts, chunks) = (3, VOCAB as u64 / 2048);
    for (rule, partial) in [("rejection", 8 * chunks + 4), ("block", (8 + 4 * 2) * chunks + 4)] {
        let case = Acceptance { batch: 1, drafts, vocab: VOCAB, rule, logits };
        let beside = Beside { read: partial, written: partial };
        at_the_floor(&case, beside, &["target", "draft", "committed", "verdicts"]);
    }
    // The rule `match` compares only tokens. The probability of the bonus token takes one logit and its row's
    // statistics.
    let case = Acceptance { batch: 4, drafts, vocab: 64, rule: "match", logits };
    at_the_floor(&case, Beside { read: 4 * (48 + 4), written: 0 }, &["committed", "verdicts"]);
}

#[test]
fn chain() {
    chain_of(PhantomData::<f32>);
    chain_of(PhantomData::<bf16>);
    let (batch, slots, count) = (3, 16, 16);
    let walk = Chain { kernel: "chain_walk", batch, slots, count, size: 0, stored: PhantomData::<f32> };
    // The random numbers of a draft take its ids a second time.
    at_the_floor(&walk, Beside::default(), &["scores", "chosen", "stats"]);
}

fn chain_of<L: Stored>(stored: PhantomData<L>) {
    let case = |kernel, batch, count, size| Chain { kernel, batch, slots: 4, count, size, stored };
    // 20 of 32 chunks of 1024 ids.
    at_the_floor(&case("chain_choose", 1, 20, VOCAB), Beside::default(), &["logits", "ids", "chosen"]);
    // Four warps and four CTAs per row share the factors, which the caches serve.
    at_the_floor(&case("chain_score", 3, 16, 520), Beside::default(), &["scores"]);
}

#[test]
fn glue() {
    // Each tensor of the elementwise kernels has 256 kilobytes. rms_norm reads x again when the norm of its row is
    // known: a few kilobytes, which are in the multiprocessor's cache.
    let kernels: [(&str, &[&str]); 6] = [
        ("embed", &["table", "out"]),
        ("gather", &["x", "out"]),
        ("add", &["x", "delta"]),
        ("rms_norm", &["delta", "out"]),
        ("silu_mul", &["x", "out"]),
        ("silu_add", &["x"]),
    ];
    for (kernel, streamed) in kernels {
        let half = PhantomData::<bf16>;
        at_the_floor(&Elementwise { kernel, rows: 32, cols: 4096, half }, Beside::default(), streamed);
    }
    // The append also reads, for every row, its place in the pass: 16 bytes per sequence, and 4 bytes of its page. All
    // heads share the turns.
    let half = PhantomData::<bf16>;
    let append =
        Append { rows: 64, context: 40, q_heads: 8, kv_heads: 2, head_dim: 128, page_size: 16, half };
    let beside = Beside { read: 64 * 20, written: 0 };
    at_the_floor(&append, beside, &["qkv", "k cache", "v cache"]);
    let rotations = Rotations { batch: 8, candidates: 64, head_dim: 128 };
    at_the_floor(&rotations, Beside { read: 9 * 16, written: 0 }, &["cos_sin"]);
}

#[test]
fn selection() {
    for kernel in ["select_drafts", "follow_verdicts"] {
        let case = Selection { kernel, batch: 256, slots: 16 };
        let written: &[&str] = match kernel {
            "select_drafts" => &["bonus", "starts", "sources", "draft rows"],
            _ => &["pass"],
        };
        at_the_floor(&case, Beside::default(), written);
    }
}

/// Checks the floors of attention in a layer of Qwen3-8B on an H100 (3.0 TB/s, 800 TFLOP/s), in microseconds without
/// the states of splits: memory and math for one group, for 4 drafts with 5 groups, and for 15 drafts with 16 groups.
#[test]
fn floors_of_a_layer() {
    let heads = Heads { q_heads: 32, kv_heads: 8, head_dim: 128 };
    let loads: [(usize, u64, [[f64; 2]; 3]); 5] = [
        (1, 8192, [[11.0, 3.0], [12.0, 14.0], [13.0, 46.0]]),
        (4, 8192, [[45.0, 11.0], [47.0, 57.0], [52.0, 183.0]]),
        (16, 1024, [[24.0, 5.0], [32.0, 29.0], [52.0, 94.0]]),
        (16, 8192, [[181.0, 43.0], [188.0, 229.0], [209.0, 733.0]]),
        (64, 1024, [[96.0, 22.0], [127.0, 116.0], [208.0, 376.0]]),
    ];
    for (batch, start, expected) in loads {
        for ((candidates, groups), [memory, math]) in [(0, 1), (5, 5), (16, 16)].into_iter().zip(expected) {
            let rows = AttentionRows { start, candidates, groups: (0..groups).collect(), slots: 16 };
            let floor = floor::attention(heads, &vec![rows; batch]);
            let (memory_found, math_found) = (floor.bytes() as f64 / 3.0e6, floor.flops as f64 / 8.0e8);
            let name = format!("batch {batch}, context {start}, {groups} groups");
            assert!(
                (memory_found - memory).abs() < 0.06 * memory + 0.6,
                "{name}: {memory_found} µs of memory"
            );
            assert!((math_found - math).abs() < 0.06 * math + 0.6, "{name}: {math_found} µs of math");
        }
    }
}

#[test]
fn floors_of_the_other_kernels() {
    let us = |floor: Floor| floor.seconds(Peaks { bytes: 3.0e12, flops: 8.0e14 });
    // At batch 1 the floor of reading W2 is 52 µs; sampling also reads and writes 15 rows of logits.
    let (rows, vocab) = (15, 151_936);
    let w2 = Calibrated { rank: 512, kept: true };
    let plain = floor::sampling(rows, vocab, 4, None);
    let calibrated = floor::sampling(rows, vocab, 4, Some(w2));
    let added = calibrated.bytes() - plain.bytes() - rows * vocab * 4;
    assert!((added as f64 / 3.0e6 - 52.0).abs() < 0.5);
    assert_eq!(calibrated.flops, 2 * rows * vocab * 512);
    // At batch 64 the floor of the rule `rejection` is 26 µs, for two rows of logits per sequence; `block` reads 2 · 15
    // rows.
    let scan = |scan| us(floor::acceptance(64, 15, vocab, 4, scan));
    assert!((scan(Scan::Rejection).0 - 26e-6).abs() < 0.5e-6);
    assert!((scan(Scan::Block).0 / scan(Scan::Rejection).0 - 15.0).abs() < 0.1);
    assert_eq!(scan(Scan::Block).1, Bound::Memory);
    let math = Floor { read: 1, written: 1, flops: 1_000_000 };
    assert_eq!(us(math), (1e6 / 8.0e14, Bound::Math));
}

#[test]
fn a_line_is_what_the_folding_script_reads() {
    let case = Acceptance { batch: 2, drafts: 4, vocab: 6144, rule: "block", logits: PhantomData::<f32> };
    assert!(
        record::label(&Measured::of(&case).shape).contains("batch=2")
            && record::label(&Measured::of(&case).shape).contains("rule=block")
    );
    let device = Device {
        device: "a device".into(),
        copy_bytes_per_second: 2e12,
        product_flops_per_second: 5e14,
        seconds_of_nothing: 1e-6,
    };
    let times = (1..=11).map(|i| f64::from(i) * 1e-6).collect();
    let line = Line::new(&Measured::of(&case), times, device.peaks()).unwrap();
    assert!(Line::new(&Measured::of(&case), Vec::new(), device.peaks()).is_none());

    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("results");
    let mut record = Record::create(&path, "acceptance", &device).unwrap();
    record.add(&line).unwrap();
    let text = std::fs::read_to_string(path.join("kernels-acceptance.jsonl")).unwrap();
    let lines: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines[0]["device"], "a device");
    let (median, floor) = (lines[1]["median_us"].as_f64().unwrap(), lines[1]["floor_us"].as_f64().unwrap());
    assert!((median - 6.0).abs() < 1e-9);
    assert!((floor - case.floor().bytes() as f64 / 2e6).abs() < 1e-9);
    assert_eq!(lines[1]["shape"]["rule"], "block");
    assert_eq!(lines[1]["launches"], 11);
    assert!((lines[1]["fraction_of_floor"].as_f64().unwrap() - floor / median).abs() < 1e-9);
}
