//! The first program on a new GPU: it tests whether the GPU loads the kernels, and whether each kernel runs.
//!
//! `kernels first [FROM]` launches every kernel on operands of a few rows, waits for each launch, and adds lines of
//! JSON to `first-kernels.jsonl`, in the directory that `FLEXDRAFT_BENCH_RESULTS` names. Results are not looked at:
//! `tests/kernels` does that. A launch that fails may take the whole context with it, so the program ends at the first
//! failure; called again with the number of `case` lines that are in the file, it goes on after the failed case.
//! Without a GPU the kernels run on the SIMT emulator, unless `FLEXDRAFT_REQUIRE_GPU` is set.

use std::collections::BTreeSet;
use std::env;
use std::error::Error;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use flexdraft::kernels::{KernelError, Kernels};
use flexdraft::runtime::{Cuda, Limits, RuntimeError, Simt, SimtOptions};
use half::{bf16, f16};
use serde_json::{Value, json};

use crate::cases::acceptance::Acceptance;
use crate::cases::attention::Attention;
use crate::cases::chain::Chain;
use crate::cases::glue::{Append, Elementwise};
use crate::cases::sampling::{Sampling, Stored};
use crate::cases::selection::{Rotations, Selection};
use crate::cases::{Case, Half};
use crate::machine::Machine;
use crate::traced::{Log, Traced, Waits};

/// Name of the file that gets a line of JSON per launch.
const FILE: &str = "first-kernels.jsonl";

/// Prepares the operands of a case, and launches its kernels as often as the number says.
type Run<R> = Box<dyn Fn(&Machine<Traced<R>>, usize) -> Result<(), KernelError>>;

/// A case to launch, and the shared memory that a CTA may take in this case, in KiB (the device's limit if `None`).
pub struct Planned<R: Waits> {
    pub name: String,
    shared_kib: Option<u32>,
    run: Run<R>,
}

/// Returns a plan that launches the kernels of `case`.
fn plan<R: Waits, C: Case + 'static>(name: impl Into<String>, case: C) -> Planned<R> {
    let run = move |machine: &Machine<Traced<R>>, times: usize| {
        let mut prepared = case.prepare(machine)?;
        (0..times).try_for_each(|_| prepared.launch())
    };
    Planned { name: name.into(), shared_kib: None, run: Box::new(run) }
}

/// Returns a case of attention for two sequences, with the heads of Qwen3-8B for 128 dimensions and of SmolLM2-135M for
/// 64. Its rows and the shared memory decide which kernel it launches.
fn attention<R: Waits, T: Half + 'static>(
    name: &str,
    head_dim: usize,
    groups: usize,
    shared_kib: u32,
) -> Planned<R> {
    let (q_heads, kv_heads, page_size) = if head_dim == 128 { (32, 8, 64) } else { (9, 3, 16) };
    let (candidates, slots) = (groups.max(1), 8);
    let case = Attention {
        batch: 2,
        context: 70,
        candidates,
        groups,
        slots,
        q_heads,
        kv_heads,
        head_dim,
        page_size,
        split: 64,
        half: PhantomData::<T>,
    };
    let name = format!("attention of {head_dim} dimensions, {groups} groups, {shared_kib} KiB, {name}");
    Planned { shared_kib: Some(shared_kib), ..plan(name, case) }
}

/// Returns a case of attention with one row whose context is long enough for the merge of many splits.
fn long_attention<R: Waits, T: Half + 'static>(name: &str, head_dim: usize) -> Planned<R> {
    let case = Attention {
        batch: 1,
        context: 125 * 64,
        candidates: 1,
        groups: 0,
        slots: 0,
        q_heads: 1,
        kv_heads: 1,
        head_dim,
        page_size: 64,
        split: 64,
        half: PhantomData::<T>,
    };
    plan(format!("attention of {head_dim} dimensions, many splits, {name}"), case)
}

/// Returns the cases of sampling and acceptance with logits stored as `L`.
fn of_logits<R: Waits, L: Stored + 'static>(name: &str) -> Vec<Planned<R>> {
    let logits = PhantomData::<L>;
    let vocab = 1500;
    let calibrator = PhantomData::<L::Calibrator>;
    let sampling = |rows, rank, truncated| Sampling { rows, vocab, rank, truncated, logits, calibrator };
    let acceptance = |rule| Acceptance { batch: 2, drafts: 3, vocab, rule, logits };
    let chain = |kernel, size| Chain { kernel, batch: 2, slots: 5, count: 7, size, stored: PhantomData::<L> };
    vec![
        plan(format!("choice of a chain's ids, {name}"), chain("chain_choose", vocab)),
        plan(format!("scores of a chain, {name}"), chain("chain_score", 40)),
        plan(format!("sampling, {name}"), sampling(3, 0, true)),
        plan(format!("calibrated sampling of few rows, {name}"), sampling(3, 64, false)),
        plan(format!("calibrated sampling of many rows, {name}"), sampling(65, 64, false)),
        plan(format!("acceptance by rejection, {name}"), acceptance("rejection")),
        plan(format!("acceptance by block, {name}"), acceptance("block")),
    ]
}

/// Returns the cases around matrix products with rows and caches of `T`.
fn glue<R: Waits, T: Half + 'static>(name: &str) -> Vec<Planned<R>> {
    let half = PhantomData::<T>;
    let rows = ["embed", "gather", "add", "rms_norm", "silu_mul", "silu_add"]
        .map(|kernel| plan(format!("{kernel}, {name}"), Elementwise { kernel, rows: 3, cols: 576, half }));
    let appends = [(64, 9, 3, 16), (128, 32, 8, 64)].map(|(head_dim, q_heads, kv_heads, page_size)| {
        let append = Append { rows: 2, context: 70, q_heads, kv_heads, head_dim, page_size, half };
        plan(format!("append of {head_dim} dimensions, {name}"), append)
    });
    rows.into_iter().chain(appends).collect()
}

/// Returns the cases of attention with rows and caches of `T`.
fn of_attention<R: Waits, T: Half + 'static>(name: &str) -> Vec<Planned<R>> {
    let mut all = vec![];
    for head_dim in [64, 128] {
        // These limits are the shared memory that a CTA may take at compute capability 9.0, 8.6 and 7.5; each makes
        // other attention kernels the best choice.
        let limits: &[u32] = if head_dim == 64 { &[227, 99, 64] } else { &[227, 99] };
        for &shared_kib in limits {
            all.extend([0, 3].map(|groups| attention::<R, T>(name, head_dim, groups, shared_kib)));
        }
        all.push(long_attention::<R, T>(name, head_dim));
    }
    all
}

/// Returns cases that launch every kernel, the shortest cases first.
pub fn planned<R: Waits>() -> Vec<Planned<R>> {
    let mut all: Vec<Planned<R>> = glue::<R, bf16>("bf16");
    all.extend(glue::<R, f16>("f16"));
    all.push(plan("rope_table", Rotations { batch: 2, candidates: 3, head_dim: 128 }));
    for kernel in ["select_drafts", "follow_verdicts"] {
        all.push(plan(kernel, Selection { kernel, batch: 2, slots: 16 }));
    }
    let stored = PhantomData::<f32>;
    all.push(plan(
        "chain_walk",
        Chain { kernel: "chain_walk", batch: 2, slots: 16, count: 16, size: 0, stored },
    ));
    all.extend(of_attention::<R, bf16>("bf16"));
    all.extend(of_attention::<R, f16>("f16"));
    all.extend(of_logits::<R, f32>("f32"));
    all.extend(of_logits::<R, bf16>("bf16"));
    all.extend(of_logits::<R, f16>("f16"));
    for rows in [3, 65] {
        let (logits, calibrator) = (PhantomData::<f32>, PhantomData::<f16>);
        let case = Sampling { rows, vocab: 1500, rank: 64, truncated: false, logits, calibrator };
        all.push(plan(format!("sampling of {rows} rows of f32, calibrated by f16"), case));
    }
    all
}

/// Runs the cases from number `from` on, until one fails.
fn launch_all<R: Waits>(
    runtime: R,
    stream: R::Stream,
    log: &Arc<Log>,
    from: usize,
) -> Result<(), Box<dyn Error>>
where
    R::Stream: Clone,
{
    let inner = Arc::new(runtime);
    for case in planned::<R>().into_iter().skip(from) {
        log.add(&json!({"case": case.name}))?;
        case.launch(&inner, &stream, log, 1).map_err(|error| format!("{}: {error}", case.name))?;
    }
    Ok(())
}

impl<R: Waits> Planned<R>
where
    R::Stream: Clone,
{
    /// Launches the kernels of the case, one after the other, `times` times.
    pub fn launch(
        &self,
        runtime: &Arc<R>,
        stream: &R::Stream,
        log: &Arc<Log>,
        times: usize,
    ) -> Result<(), KernelError> {
        let all = runtime.limits();
        let shared_bytes_per_cta =
            self.shared_kib.map_or(u32::MAX, |kib| kib << 10).min(all.shared_bytes_per_cta);
        // The case sees a multiprocessor with one KiB more shared memory than one CTA may take, and at least 132
        // multiprocessors, which a merge of many splits needs.
        let limits = Limits {
            multiprocessors: all.multiprocessors.max(132),
            shared_bytes_per_cta,
            shared_bytes_per_multiprocessor: match self.shared_kib {
                Some(kib) => ((kib + 1) << 10).min(all.shared_bytes_per_multiprocessor),
                None => all.shared_bytes_per_multiprocessor,
            },
        };
        let traced = Traced { inner: runtime.clone(), limits, log: log.clone() };
        let machine = Machine { kernels: Kernels::new(traced), stream: stream.clone() };
        (self.run)(&machine, times)
    }
}

/// Returns the kernels among `names` that have no successful launch in the file of results.
fn missing(
    path: &Path,
    names: impl Iterator<Item = &'static str>,
) -> Result<Vec<&'static str>, Box<dyn Error>> {
    let text = std::fs::read_to_string(path)?;
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let launched: BTreeSet<String> = lines
        .filter(|line| line["status"] == "ok")
        .filter_map(|line| line["kernel"].as_str().map(str::to_owned))
        .collect();
    // The kernels named `golden_…` execute single instructions, and tests/golden_vectors launches them.
    let ours = names.filter(|name| !name.starts_with("golden_"));
    Ok(ours.filter(|name| !launched.contains(*name)).collect())
}

/// Launches every kernel on the SIMT emulator, from case number `from` on.
pub fn on_simt(directory: &Path, from: usize) -> Result<(), Box<dyn Error>> {
    let simt = Simt::new(SimtOptions::default());
    let stream = simt.stream();
    let log = Arc::new(Log::open(&directory.join(FILE))?);
    if from == 0 {
        log.add(&json!({"device": "SIMT emulator"}))?;
    }
    launch_all(simt, stream, &log, from)
}

/// Launches every kernel on a GPU, from case number `from` on.
fn on_cuda(directory: &Path, from: usize) -> Result<(), Box<dyn Error>> {
    let begun = Instant::now();
    let context = Cuda::context(0)?;
    let context_seconds = begun.elapsed().as_secs_f64();
    let path = directory.join(FILE);
    let log = Arc::new(Log::open(&path)?);
    let cuda = Cuda::new(&context)?;
    if from == 0 {
        let Limits { multiprocessors, shared_bytes_per_cta, shared_bytes_per_multiprocessor } =
            flexdraft::runtime::Runtime::limits(&cuda);
        log.add(&json!({
            "device": context.name().map_err(RuntimeError::from)?,
            "compute_capability": context.compute_capability().map_err(RuntimeError::from)?,
            "multiprocessors": multiprocessors,
            "shared_bytes_per_cta": shared_bytes_per_cta,
            "shared_bytes_per_multiprocessor": shared_bytes_per_multiprocessor,
            "context_seconds": context_seconds,
            "load_seconds": begun.elapsed().as_secs_f64() - context_seconds,
        }))?;
    }
    launch_all(cuda, context.default_stream(), &log, from)?;
    let missing = missing(&path, Cuda::kernel_names())?;
    match missing.is_empty() {
        true => Ok(()),
        false => Err(format!("not launched: {}", missing.join(", ")).into()),
    }
}

/// Runs the command `kernels first [FROM]`.
pub fn run(from: usize) -> Result<(), Box<dyn Error>> {
    let directory = env::var_os("FLEXDRAFT_BENCH_RESULTS").map_or("target/kernels".into(), PathBuf::from);
    match on_cuda(&directory, from) {
        Err(error) if env::var_os("FLEXDRAFT_REQUIRE_GPU").is_none() && no_gpu(error.as_ref()) => {
            eprintln!("*** on the SIMT emulator, without a GPU: {error} ***");
            on_simt(&directory, from)
        }
        other => other,
    }
}

fn no_gpu(error: &(dyn Error + 'static)) -> bool {
    let found = error.downcast_ref::<RuntimeError>();
    matches!(found, Some(RuntimeError::Unavailable(_) | RuntimeError::NoDeviceCode))
}
