//! The record of a measurement: a line of JSON, and the file to which each line is added as soon as it is known.
//!
//! The first line of a file `kernels-FAMILY.jsonl` has the device's peaks; every other line is a case.
//! `benches/gpu/fold.py` reads these files.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use crate::cases::Case;
use crate::floor::{Bound, Floor, Peaks};

/// The measured GPU, and its limits as measured in the same run.
#[derive(Clone, Debug, Serialize)]
pub struct Device {
    pub device: String,
    /// Bytes per second, read plus written, of a copy in device memory.
    pub copy_bytes_per_second: f64,
    /// Floating-point operations per second of a large bf16 product by cuBLASLt.
    pub product_flops_per_second: f64,
    /// Seconds between two CUDA events without work between them, which every measured time includes.
    pub seconds_of_nothing: f64,
}

impl Device {
    pub fn peaks(&self) -> Peaks {
        Peaks { bytes: self.copy_bytes_per_second, flops: self.product_flops_per_second }
    }
}

/// One measured case, compared with its floor.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    pub kernel: &'static str,
    /// Fields of the case, such as its batch size.
    pub shape: Value,
    /// Number of timed launches, with the L2 cache flushed before each.
    pub launches: usize,
    /// The median and two percentiles of the launches' times, in microseconds.
    pub median_us: f64,
    pub p10_us: f64,
    pub p90_us: f64,
    /// The bytes that the floor's least traffic consists of, and the floating-point operations of its products.
    pub bytes: u64,
    pub flops: u64,
    /// The floor in microseconds, from the device's limits as measured in this run, and the resource that sets it:
    /// `memory` or `math`.
    pub floor_us: f64,
    pub bound: &'static str,
    /// The floor divided by the median time: a kernel at 1 cannot be faster.
    pub fraction_of_floor: f64,
    /// The floor's bytes and operations, divided by the median time.
    pub gigabytes_per_second: f64,
    pub teraflops_per_second: f64,
}

impl Line {
    /// Returns the line of JSON for a case whose launches took `seconds`; `None` without a launch.
    pub fn new(what: &Measured, mut seconds: Vec<f64>, peaks: Peaks) -> Option<Self> {
        seconds.sort_by(f64::total_cmp);
        let quantile = |q: f64| {
            let last = seconds.len().checked_sub(1)?;
            seconds.get((q * last as f64).round() as usize).copied()
        };
        let median = quantile(0.5)?;
        let floor = &what.floor;
        let (least, bound) = floor.seconds(peaks);
        Some(Line {
            kernel: what.kernel,
            shape: what.shape.clone(),
            launches: seconds.len(),
            median_us: median * 1e6,
            p10_us: quantile(0.1)? * 1e6,
            p90_us: quantile(0.9)? * 1e6,
            bytes: floor.bytes(),
            flops: floor.flops,
            floor_us: least * 1e6,
            bound: match bound {
                Bound::Memory => "memory",
                Bound::Math => "math",
            },
            fraction_of_floor: least / median,
            gigabytes_per_second: floor.bytes() as f64 / median / 1e9,
            teraflops_per_second: floor.flops as f64 / median / 1e12,
        })
    }
}

/// A case to measure, and its floor.
#[derive(Clone, Debug)]
pub struct Measured {
    pub kernel: &'static str,
    pub shape: Value,
    pub floor: Floor,
}

impl Measured {
    pub fn of(case: &impl Case) -> Self {
        let shape = serde_json::to_value(case).unwrap_or_default();
        Measured { kernel: case.kernel(), shape, floor: case.floor() }
    }
}

/// Returns a case's shape as it appears in a benchmark's name: `batch=1 context=8192 …`.
pub fn label(shape: &Value) -> String {
    let Value::Object(fields) = shape else { return String::new() };
    let field = |(name, value): (&String, &Value)| match value {
        Value::String(text) => format!("{name}={text}"),
        other => format!("{name}={other}"),
    };
    fields.iter().map(field).collect::<Vec<String>>().join(" ")
}

/// A file of JSON lines; a line is on disk when `add` returns.
pub struct Record(File);

impl Record {
    /// Creates the file `kernels-FAMILY.jsonl` in `directory`, with the line that describes the device.
    pub fn create(directory: &Path, family: &str, device: &Device) -> io::Result<Self> {
        std::fs::create_dir_all(directory)?;
        let mut record = Record(File::create(directory.join(format!("kernels-{family}.jsonl")))?);
        record.add(device)?;
        Ok(record)
    }

    pub fn add(&mut self, line: &impl Serialize) -> io::Result<()> {
        let mut text = serde_json::to_string(line)?;
        text.push('\n');
        self.0.write_all(text.as_bytes())?;
        self.0.sync_data()
    }
}
