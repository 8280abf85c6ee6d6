//! The floors that the GPU benchmark compares kernels with: computed as they should be, and the bytes that the
//! SIMT host sees the benchmark's own cases read and write.

#![cfg(feature = "simt")]
#![allow(clippy::unwrap_used, dead_code, missing_docs)]

#[path = "../benches/kernels/cases/mod.rs"]
mod cases;
#[path = "../benches/kernels/floor.rs"]
mod floor;
#[path = "../benches/kernels/machine.rs"]
mod machine;
#[path = "../benches/kernels/record.rs"]
mod record;

use cases::Case;
use cases::acceptance::Acceptance;
use cases::attention::Attention;
use cases::glue::{Append, Elementwise};
use cases::sampling::Sampling;
use flexdraft::backend::simt::Checking;
use flexdraft::backend::{Simt, SimtOptions};
use flexdraft::kernels::Kernels;
use floor::{AttentionRows, Bound, Calibrated, Ceilings, Floor, Heads, Scan};
use machine::Machine;
use record::{Device, Line, Record};

/// Bytes that one launch of a case reads and writes, twice the same.
fn counted(case: &impl Case) -> (u64, u64) {
    let options = SimtOptions { checking: Checking::Accesses, ..SimtOptions::default() };
    let kernels = Kernels::new(Simt::new(options));
    let stream = kernels.backend().stream();
    let machine = Machine { kernels, stream };
    let mut prepared = case.prepare(&machine).unwrap();
    let mut count = || {
        machine.kernels.backend().take_traffic();
        prepared.restore().unwrap();
        prepared.launch().unwrap();
        let traffic = machine.kernels.backend().take_traffic();
        traffic.iter().fold((0, 0), |(read, written), t| (read + t.read, written + t.written))
    };
    let first = count();
    assert_eq!(count(), first, "{}: launches differ", record::label(case));
    first
}

/// Tables and partial results of a few bytes a row, which floors leave out.
const SMALL: f64 = 1024.0;

/// That a case moves what its floor counts, and at most `more` times that.
fn at_the_floor(case: &impl Case, more: f64) {
    let (read, written) = counted(case);
    let floor = case.floor();
    for (what, found, least) in [("read", read, floor.read), ("written", written, floor.written)] {
        let name = format!("{} {}: {found} bytes {what}", case.kernel(), record::label(case));
        assert!(found >= least, "{name}, and the floor counts {least}");
        assert!(found as f64 <= more * least as f64 + SMALL, "{name}, and the floor counts {least}");
    }
}

#[test]
fn attention() {
    let case = |batch, context, candidates, groups| Attention {
        batch,
        context,
        candidates,
        groups,
        slots: 8,
        q_heads: 4,
        kv_heads: 2,
        head_dim: 64,
        page_size: 32,
    };
    for (batch, context, candidates, groups) in [(2, 600, 1, 0), (2, 300, 0, 1), (2, 2000, 3, 2)] {
        at_the_floor(&case(batch, context, candidates, groups), 1.1);
    }
    // A single sequence's keys are divided: 3 splits, and the slots, of 4 query heads of 8 slots.
    let divided = case(1, 1100, 0, 1);
    let (read, _) = counted(&divided);
    let states = (3 + 1) * 8 * 4 * (64 + 2) * 4;
    assert!(read as f64 <= 1.1 * divided.floor().read as f64 + states as f64 + SMALL, "{read} bytes read");
}

#[test]
fn sampling() {
    for (rows, rank) in [(1, 0), (5, 0), (3, 128)] {
        at_the_floor(&Sampling { rows, vocab: 6144, rank, truncated: false }, 1.1);
    }
    // Truncation looks at logits again: above the floor, and right.
    let (read, _) = counted(&Sampling { rows: 2, vocab: 6144, rank: 0, truncated: true });
    assert!(read > 2 * 6144 * 4);
}

#[test]
fn acceptance() {
    for rule in ["match", "rejection", "block"] {
        let case = Acceptance { batch: 2, drafts: 4, vocab: 6144, rule };
        let ((read, _), least) = (counted(&case), case.floor().read);
        // Statistics are a kilobyte, so what is read besides them shows.
        assert!(read <= least + least / 10 + 2048, "{rule}: {read} bytes, the floor counts {least}");
        assert!(rule == "match" || read >= least, "{rule}: {read} bytes, the floor counts {least}");
    }
}

#[test]
fn glue() {
    for kernel in ["embed", "rms_norm", "silu_mul"] {
        at_the_floor(&Elementwise { kernel, rows: 6, cols: 512 }, 1.1);
    }
    let append = Append { rows: 3, context: 40, q_heads: 8, kv_heads: 2, head_dim: 128, page_size: 16 };
    at_the_floor(&append, 1.1);
}

/// Attention of a layer of Qwen3-8B on an H100 (3.0 TB/s, 800 TFLOP/s), microseconds without the states of
/// splits: memory and math for one group, for 4 drafts with 5 groups, and for 15 with 16.
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
    let us = |floor: Floor| floor.seconds(Ceilings { bytes: 3.0e12, flops: 8.0e14 });
    // W2 at batch 1: 52 µs; 15 rows of logits read and written besides.
    let (rows, vocab) = (15, 151_936);
    let w2 = Calibrated { rank: 512, kept: true };
    let plain = floor::sampling(rows, vocab, 4, None);
    let calibrated = floor::sampling(rows, vocab, 4, Some(w2));
    let added = calibrated.bytes() - plain.bytes() - rows * vocab * 4;
    assert!((added as f64 / 3.0e6 - 52.0).abs() < 0.5);
    assert_eq!(calibrated.flops, 2 * rows * vocab * 512);
    // Rejection at batch 64 reads two rows a sequence, 26 µs; block 2 · 15.
    let scan = |scan| us(floor::acceptance(64, 15, vocab, 4, scan));
    assert!((scan(Scan::Rejection).0 - 26e-6).abs() < 0.5e-6);
    assert!((scan(Scan::Block).0 / scan(Scan::Rejection).0 - 15.0).abs() < 0.1);
    assert_eq!(scan(Scan::Block).1, Bound::Memory);
    let math = Floor { read: 1, written: 1, flops: 1_000_000 };
    assert_eq!(us(math), (1e6 / 8.0e14, Bound::Math));
}

#[test]
fn a_line_is_what_the_folding_script_reads() {
    let case = Acceptance { batch: 2, drafts: 4, vocab: 6144, rule: "block" };
    assert!(record::label(&case).contains("batch=2") && record::label(&case).contains("rule=block"));
    let device = Device {
        device: "a device".into(),
        copy_bytes_per_second: 2e12,
        product_flops_per_second: 5e14,
        seconds_of_nothing: 1e-6,
    };
    let times = (1..=11).map(|i| f64::from(i) * 1e-6).collect();
    let line = Line::new(&case, times, device.ceilings()).unwrap();
    assert!(Line::new(&case, Vec::new(), device.ceilings()).is_none());

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
