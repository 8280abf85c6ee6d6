//! Tests that an engine on a GPU keeps no memory, graph or other object of the driver from one request to the next, over
//! many steps.
//!
//! `FLEXDRAFT_TEST_EFFORT` scales the number of steps; `tests/soak.sh` runs many and writes the result.

use std::{env, fs};

use cudarc::driver::result;
use flexdraft::acceptance::Rule;
use flexdraft::decode::{Engine, EngineOptions, Mode, Request};
use flexdraft::device::gpu::{CudaOptions, Gpu, ProductAlgorithms};
use flexdraft::model::{DrafterWeights, Model, TargetWeights};
use flexdraft::sampling::SamplingParams;
use flexdraft::tensor::DType;

use crate::engine::config;
use crate::process::{CASE, ended, this_test};
use crate::properties::{effort, scaled};

/// The usual number of steps.
const STEPS: u32 = 200;
/// The most bytes by which the process may grow in the second half of the steps: the allocator's own freedom.
const GROWTH: usize = 2 << 20;
/// Marks the line of the output that says what was seen.
const SEEN: &str = "after the first half of";

/// The memory in use: bytes of the device, and bytes of the process that are in physical memory.
fn in_use() -> (usize, usize) {
    let (free, total) = result::mem_get_info().unwrap();
    let pages = fs::read_to_string("/proc/self/statm").unwrap();
    let resident: usize = pages.split(' ').nth(1).unwrap().parse().unwrap();
    (total - free, resident * 4096)
}

/// Decodes rounds of five requests with each mode in turn. Returns the number of steps, and the memory in use after each
/// round, when the engine is idle.
fn decode() -> (usize, Vec<(usize, usize)>) {
    let target = TargetWeights::random(&config(), DType::Bf16, 1).unwrap();
    let drafter = DrafterWeights::random(&config(), 1, 4, 16, DType::Bf16, 2).unwrap();
    // A trial of algorithms would take long, and chooses by times.
    let options = CudaOptions { algorithms: ProductAlgorithms::Any, ..CudaOptions::default() };
    let model = Model::new(Gpu::cuda_with(0, options).unwrap(), &target, Some(&drafter)).unwrap();
    let options =
        EngineOptions { max_batch: 3, cache_tokens: 512, prefill_rows: 16, ..EngineOptions::default() };
    let mut engine = Engine::new(model, Mode::Autoregressive, options).unwrap();
    let (mut steps, mut seen) = (0, Vec::new());
    for round in 0.. {
        engine.set_policy([Mode::Parallel, Mode::Sequential, Mode::Autoregressive][round % 3]).unwrap();
        for place in 0..5 {
            let seed = (5 * (round % 6) + place) as u64;
            let request = Request {
                sampling: SamplingParams::at_temperature(1.0),
                rule: [Rule::Rejection, Rule::Block, Rule::Match][place % 3],
                seed,
                ..Request::new((0..3 + 7 * place as u32).map(|id| (id * 7 + seed as u32) % 200).collect(), 8)
            };
            engine.add(request).unwrap();
        }
        while !engine.is_idle() {
            engine.step().unwrap();
            steps += 1;
        }
        seen.push(in_use());
        // Whole cycles of rounds, so that both halves see the same kinds of steps.
        if steps >= scaled(STEPS, effort()) as usize && (round + 1) % 12 == 0 {
            break;
        }
    }
    (steps, seen)
}

#[test]
fn an_engine_keeps_nothing_from_request_to_request() {
    let ended = ended(this_test!(), "", &[], || {
        let (steps, seen) = decode();
        let (device, host) = seen[seen.len() / 2 - 1];
        let devices: Vec<usize> = seen[seen.len() / 2 - 1..].iter().map(|seen| seen.0).collect();
        let &(_, last) = seen.last().unwrap();
        println!(
            "{device} bytes of the device and {host} of the process were in use {SEEN} {steps} steps, and {} and {last} in the end.",
            devices.last().unwrap()
        );
        assert!(devices.iter().all(|&bytes| bytes == device), "the device's memory changes: {devices:?}");
        assert!(last <= host + GROWTH, "the process grows from {host} to {last} bytes");
    });
    if env::var_os(CASE).is_none() {
        println!("{}", ended.stderr.lines().find(|line| line.contains(SEEN)).unwrap_or_default());
        assert!(ended.status.success(), "{}", ended.stderr);
    }
}
