//! Benchmark of the CPU device's operations, for every instruction set of the machine on one thread: products in FLOP/s, the
//! other operations in bytes per second.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use flexdraft::acceptance::Rule;
use flexdraft::device::cpu::{Cpu, CpuBuffer, CpuOptions, InstructionSet};
use flexdraft::device::{
    AttentionRows, AttentionShape, Corrections, Device, DraftRows, DraftSelection, DraftTables, LinearPart,
    Precision, QkTransform, Rope, RowKind, SequenceVerdict, SlotRows, StepTables, Verification,
};
use flexdraft::layout::{GroupSet, Pass, Prediction, SequenceRows};
use flexdraft::sampling::SamplingParams;
use flexdraft::tensor::{BlockFormat, Tensor};
use half::bf16;

fn noise(len: usize) -> Vec<f32> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

fn weights(shape: &[usize]) -> Tensor {
    let values = noise(shape.iter().product());
    Tensor::from_bf16(shape, values.into_iter().map(bf16::from_f32).collect())
        .expect("a shape and its elements")
}

fn devices() -> Vec<(String, Cpu)> {
    devices_with([Precision::F32, Precision::Bf16], 1)
}

/// Returns a CPU device for each instruction set and precision, with a name for the report.
fn devices_with(precisions: [Precision; 2], threads: usize) -> Vec<(String, Cpu)> {
    let mut devices = Vec::new();
    for set in InstructionSet::available() {
        for precision in precisions {
            let options = CpuOptions { threads, precision };
            let device = Cpu::with_instruction_set(options, set).expect("an available instruction set");
            devices.push((format!("{set:?}-{precision:?}"), device));
        }
    }
    devices
}

fn filled(device: &Cpu, mut buffer: CpuBuffer, rows: usize) -> CpuBuffer {
    device.resize(&mut buffer, rows).expect("memory");
    let values = noise(buffer.cols());
    for row in 0..rows {
        let fill = &mut |to: &mut [f32]| to.copy_from_slice(&values);
        device.edit_row(&mut buffer, row, fill).expect("an existing row");
    }
    buffer
}

fn products(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("linear 1024 -> 3072");
    let weight = weights(&[3072, 1024]);
    for (name, device) in devices() {
        let layer = device.new_linear(&[LinearPart::new(&weight, None)]).expect("a matrix");
        for rows in [1, 8, 64] {
            let x = filled(&device, device.new_buffer(1024), rows);
            let mut out = device.new_buffer(3072);
            device.resize(&mut out, rows).expect("memory");
            group.throughput(Throughput::Elements(2 * 3072 * 1024 * rows as u64));
            group.bench_function(BenchmarkId::new(&name, rows), |bencher| {
                bencher.iter(|| device.linear(&layer, black_box(&x), 0..rows, &mut out));
            });
        }
    }
    group.finish();
}

/// Returns a matrix of blocks whose bytes are all the same: the time of a product does not depend on them.
fn blocks(format: BlockFormat, shape: [usize; 2]) -> Tensor {
    let len = format.bytes_of(shape[0] * shape[1]).expect("whole blocks");
    Tensor::from_blocks(format, &shape, Arc::new(vec![0x2b; len]), 0..len).expect("a shape and its blocks")
}

fn quantized_products(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("quantised linear 1024 -> 3072");
    for (name, device) in devices_with([Precision::F32, Precision::Q8], 1) {
        for format in BlockFormat::ALL {
            let weight = blocks(format, [3072, 1024]);
            let layer = device.new_linear(&[LinearPart::new(&weight, None)]).expect("a matrix");
            for rows in [1, 4, 8, 16] {
                let x = filled(&device, device.new_buffer(1024), rows);
                let mut out = device.new_buffer(3072);
                device.resize(&mut out, rows).expect("memory");
                group.throughput(Throughput::Elements(2 * 3072 * 1024 * rows as u64));
                group.bench_function(BenchmarkId::new(format!("{name}-{format}"), rows), |bencher| {
                    bencher.iter(|| device.linear(&layer, black_box(&x), 0..rows, &mut out));
                });
            }
        }
    }
    group.finish();
}

/// Products with weights that no cache holds, as in a step of a model: the widest instruction set alone, with all threads of
/// the machine.
fn products_from_memory(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("linear 1024 -> 131072, from memory");
    group.sample_size(20);
    let shape = [131_072, 1024];
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let formats = [None, Some(BlockFormat::Q8_0), Some(BlockFormat::Q4_1), Some(BlockFormat::Q4K)];
    for format in formats {
        let weight = format.map_or_else(|| weights(&shape), |format| blocks(format, shape));
        let eight_bits = if format.is_some() { Precision::Q8 } else { Precision::Bf16 };
        for (name, device) in devices_with([Precision::F32, eight_bits], threads).into_iter().rev().take(2) {
            let layer = device.new_linear(&[LinearPart::new(&weight, None)]).expect("a matrix");
            let format = format.map_or_else(|| "bf16".to_string(), |format| format.to_string());
            for rows in [1, 2, 4, 5, 8, 12, 16] {
                let x = filled(&device, device.new_buffer(shape[1]), rows);
                let mut out = device.new_buffer(shape[0]);
                device.resize(&mut out, rows).expect("memory");
                group.throughput(Throughput::Bytes(weight.byte_len() as u64));
                group.bench_function(BenchmarkId::new(format!("{name}-{format}"), rows), |bencher| {
                    bencher.iter(|| device.linear(&layer, black_box(&x), 0..rows, &mut out));
                });
            }
        }
    }
    group.finish();
}

fn norms(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("rms_norm, 64 rows of 1024");
    for (name, device) in devices() {
        let weight = device.new_vector(&weights(&[1024])).expect("a vector");
        let x = filled(&device, device.new_buffer(1024), 64);
        let mut out = filled(&device, device.new_buffer(1024), 64);
        group.throughput(Throughput::Bytes(2 * 64 * 1024 * 4));
        group.bench_function(name, |bencher| {
            bencher.iter(|| device.rms_norm(black_box(&x), 0..64, &weight, 1e-6, &mut out));
        });
    }
    group.finish();
}

fn attention(criterion: &mut Criterion) {
    let mut group =
        criterion.benchmark_group("joint_attention, 5 candidates and a group of 16 after 1000 positions");
    let shape = AttentionShape { q_heads: 16, kv_heads: 8, head_dim: 128 };
    let pages: Vec<u32> = (0..64).collect();
    let rows = SequenceRows { pages: &pages, start: 1000, candidates: 5, groups: vec![4], slots: 16 };
    let pass = Pass { sequences: vec![rows] };
    let rope = Rope { inv_freq: vec![0.1; 64], scale: 1.0 };
    for (name, device) in devices() {
        let mut cache = device.new_cache(1, 64, 16, shape).expect("memory");
        let mut qkv = filled(&device, device.new_buffer(shape.qkv_cols()), 21);
        let transform = QkTransform { shape, norms: None, eps: 1e-6, rope: &rope };
        let mut pass = device.begin(StepTables::new(&pass, &[]), &cache).expect("pages that exist").0;
        device
            .norm_rope_append(&transform, &mut pass, RowKind::Candidates, &mut qkv, 0, &mut cache)
            .expect("operands that fit");
        let mut out = filled(&device, device.new_buffer(shape.out_cols()), 21);
        let kv = 2 * 8 * 128 * 1005 * if device.precision() == Precision::Bf16 { 2 } else { 4 };
        group.throughput(Throughput::Bytes(kv));
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let rows = AttentionRows { pass: &pass, masks: true };
                device.joint_attention(shape, rows, black_box(&qkv), 0, &cache, &mut out)
            });
        });
    }
    group.finish();
}

fn sampling(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("draft, 15 rows of 151936");
    for (name, device) in devices() {
        if device.precision() == Precision::Bf16 {
            continue; // Logits are f32 with either precision.
        }
        let mut logits = filled(&device, device.new_logits(151_936), 15);
        for (kind, temperature) in [("greedy", 0.0), ("sampled", 1.0)] {
            let sampling = SamplingParams { temperature, top_k: 0, top_p: 1.0, min_p: 0.0 };
            let draft = DraftRows {
                sequence: 0,
                groups: GroupSet::all(0),
                first_row: 0,
                slots: 16,
                prediction: Prediction::OwnPosition,
                processors: None,
                sampling: &sampling,
                rule: Rule::Rejection,
                seed: 1,
            };
            let mut results = device.new_results();
            let verdict = SequenceVerdict { accepted: 0, bonus: 0, next_start: 9, fault: None };
            let rows = SlotRows::Pass { first_logits: 0 };
            group.throughput(Throughput::Bytes(15 * 151_936 * 4));
            group.bench_function(BenchmarkId::new(&name, kind), |bencher| {
                bencher.iter(|| {
                    let mut verification = device.verified(vec![verdict], &mut results);
                    let drafts = DraftTables { drafts: std::slice::from_ref(&draft), rows };
                    let selection = verification.select_drafts(drafts).expect("a group");
                    selection.draft(Corrections::NONE, black_box(&mut logits))
                });
            });
        }
    }
    group.finish();
}

criterion_group!(operations, products, quantized_products, products_from_memory, norms, attention, sampling);
criterion_main!(operations);
