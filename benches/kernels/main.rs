//! Benchmark of the kernels on a GPU, compared with their floors: attention, sampling, acceptance and glue with the
//! shapes of a decode step of Qwen3-8B, and the matrix products between them (products.rs). CUDA events measure the
//! times, with the L2 cache flushed before each launch (timing.rs).
//!
//! `cargo bench --bench kernels -- '^attention/'` measures one family. Each case is a line of JSON (record.rs) in
//! `kernels-FAMILY.jsonl`, in the directory that `FLEXDRAFT_BENCH_RESULTS` names or else in `target/kernels`. The
//! peaks that floors are computed from (floor.rs) are measured first, on the same device. Without a GPU, or without
//! device code in the build, the program says so and exits successfully. `FLEXDRAFT_REQUIRE_GPU=1` makes this case a
//! failure; a family whose cases all failed is a failure too.
//!
//! `kernels first` launches every kernel once instead (first.rs), `kernels first-products` surveys the algorithms for
//! matrix products (survey.rs).

mod cases;
mod first;
mod floor;
mod machine;
mod peaks;
mod products;
mod record;
mod survey;
mod timing;
mod traced;

use std::env;
use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use cases::acceptance::Acceptance;
use cases::attention::Attention;
use cases::chain::Chain;
use cases::glue::{Append, Elementwise};
use cases::sampling::Sampling;
use cases::selection::{Rotations, Selection};
use cases::{Case, Prepared};
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, SamplingMode, Throughput};
use flexdraft::device::DeviceError;
use flexdraft::kernels::{KernelError, Kernels};
use flexdraft::runtime::Cuda;
use floor::Peaks;
use machine::Machine;
use products::Product;
use record::{Device, Line, Measured, Record};
use timing::Timer;

/// A GPU with its measured limits, and the directory to which results are written.
struct Bench {
    machine: Machine<Cuda>,
    timer: Timer,
    device: Device,
    results: PathBuf,
    /// True if some kernel family has cases to measure and all of them failed.
    failed: bool,
}

impl Bench {
    fn open() -> Result<Self, DeviceError> {
        let context = Cuda::context(0)?;
        let kernels = Kernels::load(&context)?;
        // The benchmark uses only the default stream, because with one stream memory needs no events, whose time would
        // count as the kernel's.
        let stream = context.default_stream();
        let mut timer = Timer::new(&context, &stream)?;
        let device = peaks::measure(&context, &stream, &mut timer)?;
        let results = env::var_os("FLEXDRAFT_BENCH_RESULTS").map_or("target/kernels".into(), PathBuf::from);
        Ok(Bench { machine: Machine { kernels, stream }, timer, device, results, failed: false })
    }

    /// Measures those cases of a kernel family that the command line selects.
    fn family<C: Case>(
        &mut self,
        criterion: &mut Criterion,
        family: &str,
        cases: &[C],
        record: &mut Option<Record>,
    ) -> Result<(), Box<dyn Error>> {
        self.measured(criterion, family, cases, Measured::of, C::prepare, record)
    }

    /// Measures cases as [`family`](Self::family) does; a case may also be a kernel of another library, such as
    /// cuBLASLt.
    fn measured<T>(
        &mut self,
        criterion: &mut Criterion,
        family: &str,
        cases: &[T],
        what: impl Fn(&T) -> Measured,
        prepare: impl for<'a> Fn(&T, &'a Machine<Cuda>) -> Result<Box<dyn Prepared + 'a>, KernelError>,
        record: &mut Option<Record>,
    ) -> Result<(), Box<dyn Error>> {
        let mut group = group(criterion, family);
        let [mut measured, mut failed] = [0, 0];
        for case in cases {
            let what = what(case);
            // Each case allocates its operands when it runs and frees them at its end, because the operands of all
            // cases would not fit in memory.
            let prepare = || prepare(case, &self.machine);
            match measure(&mut self.timer, self.device.peaks(), &mut group, &what, prepare) {
                Ok(Some(line)) => {
                    let record = match record {
                        Some(record) => record,
                        None => record.insert(Record::create(&self.results, family, &self.device)?),
                    };
                    record.add(&line)?;
                    measured += 1;
                }
                // The command line does not select this case.
                Ok(None) => {}
                Err(problem) => {
                    eprintln!("{} {}: {problem}", what.kernel, record::label(&what.shape));
                    failed += 1;
                }
            }
        }
        group.finish();
        self.failed |= failed > 0 && measured == 0;
        Ok(())
    }

    fn all(&mut self, criterion: &mut Criterion) -> Result<(), Box<dyn Error>> {
        println!(
            "{}: copies {:.0} GB/s, bf16 products {:.0} TFLOP/s, {:.1} µs between two events",
            self.device.device,
            self.device.copy_bytes_per_second / 1e9,
            self.device.product_flops_per_second / 1e12,
            self.device.seconds_of_nothing * 1e6
        );
        self.family(criterion, "attention", &Attention::all(), &mut None)?;
        let mut sampling = None;
        self.family(criterion, "sampling", &Sampling::all(), &mut sampling)?;
        self.family(criterion, "sampling", &Sampling::of_bf16(), &mut sampling)?;
        let mut acceptance = None;
        self.family(criterion, "acceptance", &Acceptance::all(), &mut acceptance)?;
        self.family(criterion, "acceptance", &Acceptance::of_bf16(), &mut acceptance)?;
        self.family(criterion, "acceptance", &Selection::all(), &mut acceptance)?;
        let mut chain = None;
        self.family(criterion, "chain", &Chain::all(), &mut chain)?;
        self.family(criterion, "chain", &Chain::of_bf16(), &mut chain)?;
        let mut glue = None;
        self.family(criterion, "glue", &Elementwise::all(), &mut glue)?;
        self.family(criterion, "glue", &Rotations::all(), &mut glue)?;
        self.family(criterion, "glue", &Append::all(), &mut glue)?;
        let products = Product::all();
        self.measured(criterion, "products", &products, Product::measured, Product::prepare, &mut None)
    }
}

fn group<'a>(criterion: &'a mut Criterion, family: &str) -> BenchmarkGroup<'a, WallTime> {
    let mut group = criterion.benchmark_group(family);
    // Flat sampling gives every sample of Criterion at least one launch. The timer warms up by itself. Flushing takes
    // many times as long as a small kernel, whose launches fill the measurement time set here.
    group.sampling_mode(SamplingMode::Flat).sample_size(16).nresamples(1000);
    group.warm_up_time(Duration::from_millis(1)).measurement_time(Duration::from_millis(5));
    group
}

/// Measures a case, if the command line selects it, and compares its time with its floor.
fn measure<'a>(
    timer: &mut Timer,
    peaks: Peaks,
    group: &mut BenchmarkGroup<'_, WallTime>,
    what: &Measured,
    prepare: impl Fn() -> Result<Box<dyn Prepared + 'a>, KernelError>,
) -> Result<Option<Line>, KernelError> {
    let mut seconds = Vec::new();
    let mut problem = None;
    let mut prepared: Option<Box<dyn Prepared + 'a>> = None;
    group.throughput(Throughput::Bytes(what.floor.bytes()));
    group.bench_function(BenchmarkId::new(what.kernel, record::label(&what.shape)), |bencher| {
        bencher.iter_custom(|launches| {
            // After an error, Criterion gets invented times: it cannot be stopped, does not accept a time of zero, and
            // asks for more and more launches until some time has passed.
            let gone_wrong = || {
                thread::sleep(Duration::from_millis(1));
                Duration::from_millis(launches.clamp(1, 1000))
            };
            if problem.is_some() {
                return gone_wrong();
            }
            let mut run = || {
                let prepared = match &mut prepared {
                    Some(prepared) => prepared,
                    none => {
                        let prepared = none.insert(prepare()?);
                        timer.warm_up(prepared.as_mut())?;
                        prepared
                    }
                };
                timer.seconds(launches as usize, prepared.as_mut())
            };
            match run() {
                Ok(times) => {
                    let sum = times.iter().sum();
                    seconds.extend(times);
                    Duration::from_secs_f64(sum)
                }
                Err(error) => {
                    problem = Some(error);
                    gone_wrong()
                }
            }
        });
    });
    if let Some(problem) = problem {
        return Err(problem);
    }
    let line = Line::new(what, seconds, peaks);
    if let Some(line) = &line {
        println!(
            "    floor {:.1} µs ({}), {:.0} % of it reached, {:.0} GB/s, {:.0} TFLOP/s",
            line.floor_us,
            line.bound,
            100.0 * line.fraction_of_floor,
            line.gigabytes_per_second,
            line.teraflops_per_second
        );
    }
    Ok(line)
}

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let first = match arguments.first().map(String::as_str) {
        Some("first") => {
            let from = arguments.get(1).and_then(|from| from.parse().ok()).unwrap_or(0);
            Some(first::run(from))
        }
        Some("first-products") => Some(survey::run()),
        _ => None,
    };
    if let Some(done) = first {
        return match done {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{error}");
                ExitCode::FAILURE
            }
        };
    }
    let mut bench = match Bench::open() {
        Ok(bench) => bench,
        Err(error) => {
            eprintln!("\n*** SKIPPED on a GPU: {error} ***");
            let required = env::var_os("FLEXDRAFT_REQUIRE_GPU").is_some();
            return if required { ExitCode::FAILURE } else { ExitCode::SUCCESS };
        }
    };
    let mut criterion = Criterion::default().without_plots().configure_from_args();
    if let Err(error) = bench.all(&mut criterion) {
        eprintln!("{error}");
        return ExitCode::FAILURE;
    }
    criterion.final_summary();
    if bench.failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
