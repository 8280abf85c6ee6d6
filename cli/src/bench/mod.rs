//! `flexdraft bench`: what a step costs, in each mode, and how far that is from what the machine can do.

mod ceilings;
mod synthetic;
mod work;

use std::io::{self, Write};
use std::time::Instant;

use flexdraft::acceptance::Rule;
use flexdraft::decode::EngineOptions;
use flexdraft::device::gpu::Gpu;
use flexdraft::device::{Device, DraftRows, Precision, VerifyRows};
use flexdraft::layout::{GroupSet, Pass, SequenceRows};
use flexdraft::model::Model;
use flexdraft::model::forward::Workspace;
use flexdraft::sampling::SamplingParams;
use serde::Serialize;

use self::ceilings::Ceilings;
pub use self::synthetic::Synthetic;
use self::work::Work;
use crate::args::{BenchArgs, DeviceChoice};
use crate::error::{CliError, Result};
use crate::models::{self, Pair};

const PAGE_SIZE: usize = 16;

/// Bytes that the memory's speed is measured on, and with `--quick`.
const MEMORY: usize = 1 << 30;
const QUICK_MEMORY: usize = 64 << 20;

/// Steps that are timed, and with `--quick`.
const STEPS: usize = 7;
const QUICK_STEPS: usize = 3;

/// Rows of a pass that only writes to the cache.
const TOUCHED_ROWS: usize = 512;

/// The name of the step that reads a prompt.
const PREFILL: &str = "prefill";

/// One pass of a step, for every sequence alike.
#[derive(Clone, Debug, PartialEq)]
pub struct PassShape {
    pub candidates: usize,
    pub groups: Vec<usize>,
    pub slots: usize,
}

/// What a mode does in a step.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    pub mode: &'static str,
    pub passes: Vec<PassShape>,
    /// Candidates, the last ones, whose logits are asked for.
    pub logits: usize,
    /// v: draft tokens that are verified.
    pub verified: usize,
    /// Draft tokens that are sampled for the next step.
    pub drafts: usize,
}

/// The steps of all modes: v draft tokens verified, blocks of S.
fn steps(verify_len: usize, block_size: usize, groups: usize) -> [Step; 3] {
    let verification = PassShape { candidates: verify_len + 1, groups: Vec::new(), slots: block_size };
    let drafting = PassShape { candidates: 0, groups: vec![verify_len], slots: block_size };
    // The accepted lengths that are nearest to v.
    let groups = ((verify_len + 1).saturating_sub(groups.max(1))..=verify_len).collect();
    let joint = PassShape { groups, ..verification.clone() };
    let one = PassShape { candidates: 1, groups: Vec::new(), slots: 0 };
    let drafts = block_size - 1;
    [
        Step { mode: "ar", passes: vec![one], logits: 1, verified: 0, drafts: 0 },
        Step {
            mode: "sequential",
            passes: vec![verification, drafting],
            logits: verify_len + 1,
            verified: verify_len,
            drafts,
        },
        Step { mode: "parallel", passes: vec![joint], logits: verify_len + 1, verified: verify_len, drafts },
    ]
}

/// A prompt's first pass, of up to so many tokens as an engine reads at a time.
fn prefill(context: usize) -> Step {
    let candidates = context.clamp(1, EngineOptions::default().prefill_rows);
    let pass = PassShape { candidates, groups: Vec::new(), slots: 0 };
    Step { mode: PREFILL, passes: vec![pass], logits: 1, verified: 0, drafts: 0 }
}

/// One line of the report.
#[derive(Debug, Serialize)]
struct Measured {
    mode: &'static str,
    batch: usize,
    context: usize,
    /// Median of the steps, in seconds.
    step_seconds: f64,
    /// Tokens a second, with so many tokens a step and sequence.
    tokens_per_second: f64,
    tokens_per_step: f64,
    /// What the step takes at the measured ceilings, over what it took.
    share_of_floor: f64,
    /// `memory` or `arithmetic`.
    bound_by: &'static str,
}

#[derive(Debug, Serialize)]
struct Report {
    model: String,
    device: String,
    dtype: &'static str,
    block_size: usize,
    verify_len: usize,
    ceilings: Option<Ceilings>,
    steps: Vec<Measured>,
}

/// Runs the command.
pub fn bench(args: &BenchArgs) -> Result<()> {
    match args.device {
        DeviceChoice::Cuda(ordinal) => bench_on(args, Gpu::cuda(ordinal)?, format!("cuda:{ordinal}"), None),
        DeviceChoice::Auto | DeviceChoice::Cpu => {
            let device = models::cpu(args.threads, args.dtype.into())?;
            let memory = if args.quick { QUICK_MEMORY } else { MEMORY };
            let ceilings = Ceilings::measure(device.threads(), memory);
            let name = format!("cpu, {} threads, {:?}", device.threads(), device.instruction_set());
            bench_on(args, device, name, Some(ceilings))
        }
    }
}

fn bench_on(
    args: &BenchArgs,
    device: impl Device,
    device_name: String,
    ceilings: Option<Ceilings>,
) -> Result<()> {
    let asked = args.block_size.unwrap_or(16);
    let (weights, model_name) = match args.synthetic {
        Some(synthetic) => (synthetic.weights(asked.max(1))?, format!("{synthetic:?}, random weights")),
        None => {
            let pair = Pair::new(args.target.clone(), args.draft.clone())?;
            (pair.load(args.block_size)?, pair.target.display().to_string())
        }
    };
    let trained = weights.drafter.as_ref().map_or(1, |drafter| drafter.config.block_size);
    let block_size = args.block_size.unwrap_or(trained).min(trained).max(1);
    let verify_len = args.verify_len.unwrap_or(4).min(block_size - 1);
    let dtype: Precision = args.dtype.into();
    let kv_bytes = if dtype == Precision::Bf16 { 2 } else { 4 };
    let model = weights.on_device(device)?;
    let mut report = Report {
        model: model_name,
        device: device_name,
        dtype: if dtype == Precision::Bf16 { "bf16" } else { "f32" },
        block_size,
        verify_len,
        ceilings,
        steps: Vec::new(),
    };
    if !args.json {
        header(&report)?;
    }
    let count = if args.quick { QUICK_STEPS } else { STEPS };
    for &context in &args.context {
        for &batch in &args.batch {
            let steps = steps(verify_len, block_size, args.groups.unwrap_or(verify_len + 1));
            for step in [prefill(context)].into_iter().chain(steps) {
                if step.drafts > 0 && weights.drafter.is_none() {
                    continue;
                }
                let start = if step.mode == PREFILL { 0 } else { context };
                let seconds = time(&model, &step, batch, start, count)?;
                let work = Work::of_step(&weights, &step, batch, start, kv_bytes);
                let measured = measured(&step, batch, context, seconds, args.tau, &work, report.ceilings);
                if !args.json {
                    line(&measured)?;
                }
                report.steps.push(measured);
            }
        }
    }
    if args.json {
        let text = serde_json::to_string_pretty(&report).map_err(|error| CliError::Output(error.into()))?;
        writeln!(io::stdout(), "{text}").map_err(CliError::Output)?;
    }
    Ok(())
}

fn measured(
    step: &Step,
    batch: usize,
    context: usize,
    seconds: f64,
    tau: f64,
    work: &Work,
    ceilings: Option<Ceilings>,
) -> Measured {
    let tokens_per_step = match step.mode {
        PREFILL => step.passes.iter().map(|pass| pass.candidates).sum::<usize>() as f64,
        _ if step.verified == 0 => 1.0,
        _ => tau,
    };
    let (memory, arithmetic) = ceilings.map_or((0.0, 0.0), |ceilings| {
        (work.bytes / ceilings.read_bytes_per_second, work.flops / ceilings.flops_per_second)
    });
    Measured {
        mode: step.mode,
        batch,
        context,
        step_seconds: seconds,
        tokens_per_second: batch as f64 * tokens_per_step / seconds,
        tokens_per_step,
        share_of_floor: memory.max(arithmetic) / seconds,
        bound_by: if memory >= arithmetic { "memory" } else { "arithmetic" },
    }
}

fn header(report: &Report) -> Result<()> {
    let mut out = io::stdout().lock();
    let mut text = format!(
        "{} on {}, {}\nblocks of {}, {} draft tokens verified\n",
        report.model, report.device, report.dtype, report.block_size, report.verify_len
    );
    if let Some(ceilings) = report.ceilings {
        text += &format!(
            "this machine, {} threads: reads {:.1} GB/s, multiplies {:.0} GFLOP/s in f32\n",
            ceilings.threads,
            ceilings.read_bytes_per_second * 1e-9,
            ceilings.flops_per_second * 1e-9
        );
    }
    text += "\ncontext  batch  mode        step ms   tokens/s  of the floor\n";
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(CliError::Output)
}

fn line(measured: &Measured) -> Result<()> {
    let Measured { mode, batch, context, step_seconds, tokens_per_second, share_of_floor, bound_by, .. } =
        measured;
    let share = match *share_of_floor {
        0.0 => String::new(),
        share => format!("{:.0}% ({bound_by})", share * 100.0),
    };
    let text = format!(
        "{context:>7}  {batch:>5}  {mode:<10}  {:>7.2}  {tokens_per_second:>9.1}  {share}\n",
        step_seconds * 1e3
    );
    io::stdout().write_all(text.as_bytes()).map_err(CliError::Output)
}

/// Writes a token of each page of the cache: memory that nothing was written to is a single page of zeros to the
/// operating system, which reads faster than memory.
fn touch<D: Device>(
    model: &Model<D>,
    pages: &[Vec<u32>],
    context: usize,
    cache: &mut D::Cache,
    work: &mut Workspace<D>,
) -> Result<()> {
    let starts = (0..context).step_by(PAGE_SIZE);
    let rows: Vec<SequenceRows<'_>> = pages
        .iter()
        .flat_map(|pages| starts.clone().map(move |start| (pages, start)))
        .map(|(pages, start)| SequenceRows { pages, start, candidates: 1, groups: Vec::new(), slots: 0 })
        .collect();
    for rows in rows.chunks(TOUCHED_ROWS) {
        model.forward(&Pass { sequences: rows.to_vec() }, &vec![1; rows.len()], cache, work)?;
    }
    Ok(())
}

/// The median time of a step, in seconds. Nothing is generated: the same step is taken again and again.
fn time<D: Device>(model: &Model<D>, step: &Step, batch: usize, context: usize, count: usize) -> Result<f64> {
    let most = step.passes.iter().map(|pass| pass.candidates).max().unwrap_or(1);
    let pages_each = (context + most + 1).div_ceil(PAGE_SIZE);
    let mut cache = model.new_cache(batch * pages_each, PAGE_SIZE)?;
    let pages: Vec<Vec<u32>> =
        (0..batch).map(|i| (0..pages_each).map(|page| (i * pages_each + page) as u32).collect()).collect();
    let passes: Vec<Pass<'_>> = step
        .passes
        .iter()
        .map(|shape| Pass {
            sequences: pages
                .iter()
                .map(|pages| SequenceRows {
                    pages,
                    start: context,
                    candidates: shape.candidates,
                    groups: shape.groups.clone(),
                    slots: shape.slots,
                })
                .collect(),
        })
        .collect();
    let mut work = model.new_workspace();
    touch(model, &pages, context, &mut cache, &mut work)?;
    let (mut target_logits, mut draft_logits) = (model.new_logits(), model.new_logits());
    let mut results = model.device().new_results();
    let greedy = SamplingParams::GREEDY;
    // No vocabulary has this id, so the accepted length is 0.
    let draft = vec![u32::MAX; step.verified];
    let mut take = || -> Result<()> {
        for (index, (pass, shape)) in passes.iter().zip(&step.passes).enumerate() {
            let candidates = batch * shape.candidates;
            if index > 0 {
                model.device().follow(pass, &(0..batch).collect::<Vec<_>>(), &results, &cache)?;
            }
            model.forward(pass, &vec![1; candidates], &mut cache, &mut work)?;
            if candidates > 0 {
                let last = shape.candidates - step.logits..shape.candidates;
                let rows: Vec<usize> = (0..batch)
                    .flat_map(|i| last.clone().map(move |row| i * shape.candidates + row))
                    .collect();
                model.logits(&rows, &mut work, &mut target_logits)?;
                let requests: Vec<_> = (0..batch)
                    .map(|i| VerifyRows {
                        first_row: i * step.logits,
                        draft: &draft,
                        draft_logits: None,
                        sampling: &greedy,
                        rule: Rule::Match,
                        seed: 0,
                        start: context,
                    })
                    .collect();
                model.device().verify(&target_logits, &requests, &mut results)?;
            }
        }
        if let (Some(pass), true) = (passes.last(), step.drafts > 0) {
            // Drafts come from the group of the last accepted length, as if it were that of none, or from the one
            // that followed the verdict.
            let follows = passes.len() > 1 && model.device().known(&results).is_none();
            let groups = if follows { GroupSet::NONE } else { GroupSet::all(0) };
            let requests: Vec<DraftRows<'_>> = (0..batch)
                .filter_map(|sequence| {
                    Some(DraftRows {
                        sequence,
                        groups,
                        first_row: pass.group_rows(sequence, step.verified)?.start,
                        slots: step.drafts + 1,
                        sampling: &greedy,
                        rule: Rule::Match,
                        seed: 0,
                    })
                })
                .collect();
            model.draft(&requests, &mut results, &mut work, &mut draft_logits)?;
        }
        model.device().read(&mut results)?;
        Ok(())
    };
    let mut seconds = Vec::new();
    // The first step allocates, and counts for nothing.
    for i in 0..=count {
        let start = Instant::now();
        model.device().run(&mut take)?;
        if i > 0 {
            seconds.push(start.elapsed().as_secs_f64());
        }
    }
    seconds.sort_by(f64::total_cmp);
    Ok(seconds.get(seconds.len() / 2).copied().unwrap_or(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::Weights;

    #[test]
    fn steps_of_the_modes() {
        let [ar, sequential, parallel] = steps(2, 4, 2);
        assert_eq!((ar.passes[0].candidates, ar.drafts), (1, 0));
        assert_eq!((sequential.passes.len(), sequential.passes[1].groups.clone()), (2, vec![2]));
        assert_eq!((parallel.passes[0].candidates, parallel.passes[0].groups.clone()), (3, vec![1, 2]));
        assert_eq!((parallel.verified, parallel.drafts), (2, 3));
    }

    #[test]
    fn the_floor_of_a_step_reads_weights_once() {
        let weights: Weights = Synthetic::Tiny.weights(4).unwrap();
        let [ar, ..] = steps(2, 4, 3);
        let one = Work::of_step(&weights, &ar, 1, 0, 2);
        let more = Work::of_step(&weights, &ar, 3, 0, 2);
        // One position of K and V a layer each, of 64 elements.
        let kv = |batch: usize| (4 * batch * 2 * 64 * 2) as f64;
        assert_eq!(one.bytes - kv(1), more.bytes - kv(3));
        let norms = (4 * (2 * 64 + 2 * 64) + 64) * 2;
        assert_eq!(one.bytes - kv(1), (weights.bytes_a_token() - norms) as f64);
        assert_eq!(3.0 * one.flops, more.flops);
    }
}
