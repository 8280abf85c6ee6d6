//! The command `flexdraft bench`, which times a step in each mode and compares it with the machine's limits.

mod args;
mod case;
mod curves;
mod peaks;
mod report;
mod steps;
pub mod synthetic;
mod work;

use std::io::{self, Write};

use flexdraft::decode::{CostModel, DecodeError, Engine, EngineOptions, Mode, ProbeOptions};
use flexdraft::device::gpu::{self, CublasLt, CudaOptions, Gpu};
use flexdraft::device::{Device, Precision};
use flexdraft::model::{DrafterKind, Model, QuantizedWeights};

pub use self::args::BenchArgs;
use self::args::{Launches, StepMode};
use self::case::{Case, Repeats};
use self::peaks::{CpuPeaks, Peaks};
use self::report::{Header, Measured, Report, Skipped};
use self::steps::Asked;
use self::work::{Sizes, Storage};
use crate::args::{DeviceChoice, WeightsChoice};
use crate::device::{self, label};
use crate::error::{CliError, Result, warn};
use crate::models::{self, Pair, Weights};
use crate::probe::{self, Place};

/// Number of bytes that are read to measure the speed of the memory; a smaller number with `--quick`.
const MEMORY: usize = 1 << 30;
const QUICK_MEMORY: usize = 64 << 20;

/// Properties of the machine that steps run on, besides the device itself.
struct Machine {
    name: String,
    place: Place,
    dtype: &'static str,
    storage: Storage,
    peaks: Peaks,
}

/// Runs the command `flexdraft bench`.
pub fn bench(args: &BenchArgs) -> Result<()> {
    match args.device {
        DeviceChoice::Cuda(ordinal) => {
            let quantized = device::quantized_on_gpu(args.weights)?;
            let peaks = gpu::Peaks::of_device(ordinal)?;
            let asked = if args.launches.is_empty() { &Launches::ALL[..] } else { &args.launches };
            let options = CudaOptions {
                algorithms: args.products.into(),
                graphs: asked.iter().any(|&way| way != Launches::Each),
                dependent_launches: asked.contains(&Launches::Dependent),
            };
            let machine = Machine {
                name: format!("cuda:{ordinal}, {}", peaks.device),
                place: Place::gpu(ordinal, &options),
                dtype: "bf16",
                storage: Storage { kv: 2, weight: Some(2) },
                peaks: Peaks::Gpu(peaks),
            };
            bench_on(args, quantized, Gpu::cuda_with(ordinal, options)?, machine, &ways_of_a_gpu(asked))
        }
        DeviceChoice::Auto | DeviceChoice::Cpu => {
            let precision: Precision = args.dtype.into();
            let (dtype, kv) = match precision {
                Precision::F32 => ("f32", 4),
                Precision::Bf16 => ("bf16", 2),
                Precision::Q8 => ("q8", 4),
            };
            let device = models::cpu(args.threads, precision)?;
            let memory = if args.quick { QUICK_MEMORY } else { MEMORY };
            let machine = Machine {
                name: format!("cpu, {} threads, {:?}", device.threads(), device.instruction_set()),
                place: Place::cpu(&device),
                dtype,
                storage: Storage { kv, weight: None },
                peaks: Peaks::Cpu(CpuPeaks::measure(device.threads(), memory)),
            };
            let quantized = args.weights.unwrap_or(WeightsChoice::Keep).into();
            bench_on(args, quantized, device, machine, &[Way { name: None, choose: Box::new(|_| ()) }])
        }
    }
}

/// A way to launch the kernels of a step, with its name if the device has several ways.
struct Way<D> {
    name: Option<&'static str>,
    /// Makes the device launch in this way.
    choose: Box<dyn Fn(&D)>,
}

fn ways_of_a_gpu(asked: &[Launches]) -> Vec<Way<Gpu<CublasLt>>> {
    let way = |&launches: &Launches| Way {
        name: Some(launches.name()),
        choose: Box::new(move |device: &Gpu<CublasLt>| {
            device.choose_launches(launches != Launches::Each, launches == Launches::Dependent);
        }) as Box<dyn Fn(&Gpu<CublasLt>)>,
    };
    asked.iter().map(way).collect()
}

fn bench_on<D: Device>(
    args: &BenchArgs,
    quantized: QuantizedWeights,
    device: D,
    machine: Machine,
    ways: &[Way<D>],
) -> Result<()> {
    let (weights, model) = weights(args, quantized)?;
    let trained = weights.drafter.as_ref().map_or(1, |drafter| drafter.config.block_size);
    let block_size = args.block_size.unwrap_or(trained).min(trained).max(1);
    let drafter = weights.drafter.as_ref().map(|drafter| drafter.config.kind);
    if let Some(kind) = drafter.filter(|kind| !kind.drafts_while_verifying())
        && args.mode.contains(&StepMode::Parallel)
    {
        let mode = StepMode::Parallel.name();
        return Err(DecodeError::DraftsAfterVerification { mode, drafter: kind.name() }.into());
    }
    let asked = Asked::new(&args.mode, &args.verify_len, &args.groups, block_size, drafter);
    if args.curves {
        return write_curves(args, &weights.on_device(device)?, block_size, &asked);
    }
    let header = Header {
        model,
        device: machine.name,
        dtype: machine.dtype,
        block_size,
        verify_lens: asked.verify_lens().to_vec(),
        peaks: machine.peaks,
        label: label(&device),
        expects: !args.no_probe,
    };
    let mut report = Report::new(io::stdout().lock(), args.json, &header)?;
    let sizes = Sizes::new(&weights, machine.storage);
    let mut model = weights.on_device(device)?;
    let mut cost = None;
    if !args.no_probe {
        let max_batch = args.batch.iter().copied().max().unwrap_or(1);
        let key = probe::key(&machine.place, &weights, Some(block_size), max_batch);
        let options = EngineOptions { max_batch, ..EngineOptions::default() };
        let mut engine = Engine::new(model, Mode::Autoregressive, options)?;
        let options = ProbeOptions { block_size: drafter.map(|_| block_size), ..ProbeOptions::default() };
        cost = Some(probe::cost_model(&mut engine, &options, &key, || ())?);
        model = engine.into_model();
    }
    // A GPU has its own copy of the weights; a CPU shares them with the host.
    drop(weights);
    let (peaks, tau, repeats) = (header.peaks, args.tau, repeats(args));
    let mut bench = Bench { model: &model, sizes, peaks, ways, cost, tau, repeats };
    for &context in &args.context {
        for &batch in &args.batch {
            bench.case(&asked, batch, context, &mut report)?;
        }
    }
    report.end()
}

/// Returns the requested pair of target and drafter, and its name.
fn weights(args: &BenchArgs, quantized: QuantizedWeights) -> Result<(Weights, String)> {
    match args.synthetic {
        Some(synthetic) => {
            let block_size = args.block_size.unwrap_or(synthetic.block_size()).max(1);
            Ok((synthetic.weights(block_size)?, format!("{}, random weights", synthetic.name())))
        }
        None => {
            let pair = Pair::new(args.target.clone(), args.draft.clone())?;
            if pair.looks_up() {
                let message = "`bench` times the steps of a drafter, and `--draft lookup` has none";
                return Err(CliError::Usage(message.into()));
            }
            let weights = pair.load(args.block_size, quantized)?;
            for warning in weights.warnings() {
                let _ = warn(&warning.to_string());
            }
            Ok((weights, pair.target.display().to_string()))
        }
    }
}

/// Writes the curves of step times for every batch size and context length.
fn write_curves<D: Device>(
    args: &BenchArgs,
    model: &Model<D>,
    block_size: usize,
    asked: &Asked,
) -> Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{}", curves::HEADER).map_err(CliError::Output)?;
    let kind = model.drafter_kind();
    let settings = curves::Settings {
        verify_lens: asked.verify_lens(),
        block_size,
        drafts: kind.is_some(),
        drafts_in_pass: kind.is_some_and(DrafterKind::drafts_while_verifying),
        quick: args.quick,
    };
    for &context in &args.context {
        for &batch in &args.batch {
            let mut case = Case::new(model, batch, context, settings.most_candidates())?;
            settings.write(&mut case, (batch, context), &mut out)?;
        }
    }
    Ok(())
}

fn repeats(args: &BenchArgs) -> Repeats {
    if args.quick { Repeats::QUICK } else { Repeats::USUAL }
}

/// The model, the machine's limits and the settings that all cases of a benchmark share.
struct Bench<'a, D: Device> {
    model: &'a Model<D>,
    sizes: Sizes,
    peaks: Peaks,
    ways: &'a [Way<D>],
    /// The expected durations of steps that are launched in the last way, fitted to every such step that was timed.
    cost: Option<CostModel>,
    tau: f64,
    repeats: Repeats,
}

impl<D: Device> Bench<'_, D> {
    /// Times the steps of `batch` sequences that have `context` cached positions each, and reports each step that does
    /// not fit in memory as skipped.
    fn case<W: Write>(
        &mut self,
        asked: &Asked,
        batch: usize,
        context: usize,
        report: &mut Report<W>,
    ) -> Result<()> {
        let steps = asked.steps(context);
        let shape = (batch, context);
        let most = steps.iter().map(|step| step.candidates()).max().unwrap_or(0);
        let mut case = match if_it_fits(Case::new(self.model, batch, context, most))? {
            Ok(case) => case,
            Err(why) => return report.skipped(&Skipped::case(shape, why)),
        };
        for step in steps {
            // A step that reads a prompt starts without cached tokens.
            let start = if step.mode == StepMode::Prefill { 0 } else { context };
            for (i, way) in self.ways.iter().enumerate() {
                (way.choose)(self.model.device());
                match if_it_fits(case.time(&step, start, self.repeats))? {
                    Ok(times) => {
                        let work = self.sizes.work(&step, batch, start);
                        let mut measured = Measured::new(&step, shape, times, self.tau, &work, &self.peaks);
                        if let Some(cost) = self.cost.as_mut().filter(|_| i + 1 == self.ways.len()) {
                            let shape = step.shape(batch, start);
                            measured.expected_seconds = Some(cost.seconds(&shape));
                            cost.observe(&shape, times.step);
                        }
                        report.measured(&measured.launched(way.name))?;
                    }
                    Err(why) => report.skipped(&Skipped::step(&step, shape, why).launched(way.name))?,
                }
            }
        }
        Ok(())
    }
}

/// Returns a result's value, or the reason if memory ran out; any other failure ends the command.
fn if_it_fits<T>(result: Result<T>) -> Result<Result<T, String>> {
    match result {
        Ok(value) => Ok(Ok(value)),
        Err(error) if error.is_out_of_memory() => Ok(Err(error.one_line())),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::synthetic::Synthetic;
    use flexdraft::device::DeviceError;
    use flexdraft::device::gpu::CpuProducts;
    use flexdraft::kernels::Kernels;
    use flexdraft::runtime::{Simt, SimtOptions};

    use super::args::Groups;
    use super::*;

    #[test]
    fn only_a_lack_of_memory_is_skipped() {
        let fits = |error: DeviceError| if_it_fits::<()>(Err(error.into()));
        let memory = DeviceError::OutOfMemory { what: "the KV cache", bytes: 77 };
        assert_eq!(fits(memory).unwrap(), Err("out of memory: the KV cache needs 77 bytes".into()));
        let range = DeviceError::OutOfRange { operation: "o", what: "w", index: 1, limit: 1 };
        assert!(fits(range).is_err());
        assert_eq!(if_it_fits(Ok(1)).unwrap(), Ok(1));
    }

    /// Times steps on a GPU device that runs on the SIMT emulator.
    #[test]
    fn the_steps_of_a_gpu() {
        let kernels = Kernels::new(Simt::new(SimtOptions::default()));
        let stream = kernels.runtime().stream();
        let device = Gpu::new(kernels, stream, CpuProducts::new(1).unwrap());
        let weights = Synthetic::Tiny.weights(4).unwrap();
        let model = weights.on_device(device).unwrap();
        let sizes = Sizes::new(&weights, Storage { kv: 2, weight: Some(2) });
        let peaks = gpu::Peaks {
            device: "SIMT emulator".into(),
            copy_bytes_per_second: 3e12,
            product_flops_per_second: 8e14,
        };
        let repeats = Repeats { least: 1, most: 1, ..Repeats::QUICK };
        let cost = Some(CostModel::default());
        let peaks = Peaks::Gpu(peaks);
        let ways = [Way { name: None, choose: Box::new(|_| ()) }];
        let mut bench =
            Bench { model: &model, sizes, peaks: peaks.clone(), ways: &ways, cost, tau: 3.0, repeats };
        let kind = model.drafter_kind();
        let asked = Asked::new(&[], &[1, 2], &[Groups::All, Groups::Longest(1)], 4, kind);
        let header = Header {
            model: "tiny".into(),
            device: "SIMT emulator".into(),
            dtype: "bf16",
            block_size: 4,
            verify_lens: vec![1, 2],
            peaks,
            label: None,
            expects: true,
        };
        let mut out = Vec::new();
        let mut report = Report::new(&mut out, true, &header).unwrap();
        bench.case(&asked, 2, 19, &mut report).unwrap();
        let lines: Vec<serde_json::Value> = String::from_utf8(out)
            .unwrap()
            .lines()
            .skip(1)
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(lines.len(), 8);
        for line in lines {
            let seconds = |key: &str| line[key].as_f64().unwrap();
            assert!(0.0 < seconds("submit_seconds"), "{line}");
            assert!(seconds("submit_seconds") <= seconds("step_seconds"), "{line}");
            assert!(0.0 < seconds("floor_seconds"), "{line}");
        }
    }
}
