//! The benchmark's report: a header and one line per step, as text or JSON, each written as soon as it is known.

use std::io::{self, Write};

use serde::Serialize;

use super::case::Times;
use super::peaks::Peaks;
use super::steps::Step;
use super::work::Work;
use crate::error::{CliError, Result};

/// Properties that all steps of a report share.
#[derive(Debug, Serialize)]
pub struct Header {
    pub model: String,
    pub device: String,
    /// Storage type of activations and the KV cache.
    pub dtype: &'static str,
    pub block_size: usize,
    pub verify_lens: Vec<usize>,
    #[serde(rename = "ceilings")]
    pub peaks: Peaks,
    /// Label that says that the device's results are not lossless; `None` if they are lossless.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<&'static str>,
    /// Whether lines have the expected times of their steps.
    #[serde(skip)]
    pub expects: bool,
}

/// A line of JSON, with the label that results of the device have if they are not lossless.
#[derive(Serialize)]
struct Labelled<'a, T> {
    #[serde(flatten)]
    line: &'a T,
    #[serde(skip_serializing_if = "Option::is_none")]
    label: Option<&'static str>,
}

/// The measurements of one timed step.
#[derive(Debug, Serialize)]
pub struct Measured {
    pub mode: &'static str,
    pub context: usize,
    pub batch: usize,
    /// Number v of draft tokens that the step verifies.
    pub verify_len: usize,
    /// Number of mask groups in the verification pass.
    pub groups: usize,
    /// Number of repetitions, whose medians are the times.
    pub steps: usize,
    pub step_seconds: f64,
    /// Seconds that a cost model expected before it knew this step; `null` without a probe, and for all ways to launch the
    /// step but the last.
    pub expected_seconds: Option<f64>,
    /// Seconds until the host had submitted the step; `null` on a synchronous device.
    pub submit_seconds: Option<f64>,
    /// Tokens per second, at `tokens_per_step` tokens per step and sequence.
    pub tokens_per_second: f64,
    pub tokens_per_step: f64,
    /// Lower limit of the step's time at the machine's limits; `share_of_floor` is this limit over the measured time.
    pub floor_seconds: f64,
    pub share_of_floor: f64,
    /// The limit that sets the floor: `memory` or `arithmetic`.
    pub bound_by: &'static str,
    /// The way in which the step's kernels were launched, if the device has several ways.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub launches: Option<&'static str>,
}

impl Measured {
    /// Returns the measurements of a step of `batch` sequences that requires `work` and commits `tau` tokens on
    /// average, or the most tokens that it can commit.
    pub fn new(
        step: &Step,
        (batch, context): (usize, usize),
        times: Times,
        tau: f64,
        work: &Work,
        peaks: &Peaks,
    ) -> Self {
        let tokens_per_step = step.tokens(tau);
        let memory = work.bytes / peaks.bytes_per_second();
        let arithmetic = work.flops / peaks.flops_per_second();
        let floor_seconds = memory.max(arithmetic);
        Self {
            mode: step.mode.name(),
            context,
            batch,
            verify_len: step.verified,
            groups: step.groups(),
            steps: times.steps,
            step_seconds: times.step,
            expected_seconds: None,
            submit_seconds: peaks.runs_behind().then_some(times.submit),
            tokens_per_second: batch as f64 * tokens_per_step / times.step,
            tokens_per_step,
            floor_seconds,
            share_of_floor: floor_seconds / times.step,
            bound_by: if memory >= arithmetic { "memory" } else { "arithmetic" },
            launches: None,
        }
    }

    /// Returns the same measurements, of a step whose kernels were launched in the way `launches`.
    pub fn launched(self, launches: Option<&'static str>) -> Self {
        Self { launches, ..self }
    }
}

/// A step or a whole case that was skipped because it does not fit in memory.
#[derive(Debug, Serialize)]
pub struct Skipped {
    /// Name of the step; `None` if the KV cache of the batch and context does not fit, so that all its steps are
    /// skipped.
    pub mode: Option<&'static str>,
    pub context: usize,
    pub batch: usize,
    pub verify_len: Option<usize>,
    pub groups: Option<usize>,
    /// The reason for skipping the step.
    pub skipped: String,
    /// The way in which the step's kernels were launched, as in [`Measured`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub launches: Option<&'static str>,
}

impl Skipped {
    /// Returns the record of a batch size and context length whose steps were all skipped, because of `why`.
    pub fn case((batch, context): (usize, usize), why: String) -> Self {
        Self { mode: None, context, batch, verify_len: None, groups: None, skipped: why, launches: None }
    }

    /// Returns the record of a single step that was skipped, because of `why`.
    pub fn step(step: &Step, (batch, context): (usize, usize), why: String) -> Self {
        Self {
            mode: Some(step.mode.name()),
            verify_len: Some(step.verified),
            groups: Some(step.groups()),
            ..Self::case((batch, context), why)
        }
    }

    /// Returns the same record, of a step whose kernels were launched in the way `launches`.
    pub fn launched(self, launches: Option<&'static str>) -> Self {
        Self { launches, ..self }
    }
}

/// Writes the report's lines.
pub struct Report<W: Write> {
    out: W,
    json: bool,
    /// Label at the end of every line, which says that the results are not lossless; `None` if they are lossless.
    label: Option<&'static str>,
    /// Whether the table has a column of expected times.
    expects: bool,
    /// Errors of the expected times, as fractions of the measured times.
    errors: Vec<f64>,
}

impl<W: Write> Report<W> {
    /// Creates a report that begins with `header`.
    pub fn new(out: W, json: bool, header: &Header) -> Result<Self> {
        let mut report = Self { out, json, label: None, expects: header.expects, errors: Vec::new() };
        report.line(header, || header_text(header))?;
        Ok(Self { label: header.label, ..report })
    }

    pub fn measured(&mut self, measured: &Measured) -> Result<()> {
        let error = |expected: f64| (expected / measured.step_seconds - 1.0).abs();
        self.errors.extend(measured.expected_seconds.map(error));
        let expects = self.expects;
        self.line(measured, || measured_text(measured, expects))
    }

    pub fn skipped(&mut self, skipped: &Skipped) -> Result<()> {
        self.line(skipped, || skipped_text(skipped))
    }

    /// Ends the report: a text gets a line with the median error of the expected times.
    pub fn end(&mut self) -> Result<()> {
        self.errors.sort_by(f64::total_cmp);
        let Some(median) = self.errors.get(self.errors.len() / 2).filter(|_| !self.json) else {
            return Ok(());
        };
        let text = format!("median error of the expected times: {:.0}%\n", median * 100.0);
        self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush()).map_err(CliError::Output)
    }

    /// Writes one line of the report and flushes it, so that the line survives any later failure.
    fn line(&mut self, value: &impl Serialize, text: impl FnOnce() -> String) -> Result<()> {
        let label = self.label;
        let json = |value| serde_json::to_string(&Labelled { line: value, label }).map_err(io::Error::from);
        let line = if self.json { json(value).map(|json| json + "\n") } else { Ok(labelled(text(), label)) };
        let write = |line: String| self.out.write_all(line.as_bytes()).and_then(|()| self.out.flush());
        line.and_then(write).map_err(CliError::Output)
    }
}

/// Returns a line of text with a label at its end.
fn labelled(line: String, label: Option<&str>) -> String {
    match label {
        Some(label) => format!("{}  {label}\n", line.trim_end()),
        None => line,
    }
}

fn header_text(header: &Header) -> String {
    let lens: Vec<String> = header.verify_lens.iter().map(usize::to_string).collect();
    let mut text = format!(
        "{} on {}, {}\nblocks of {}, {} draft tokens verified\n",
        header.model,
        header.device,
        header.dtype,
        header.block_size,
        lens.join(", ")
    );
    let gigabytes = header.peaks.bytes_per_second() * 1e-9;
    let gigaflops = header.peaks.flops_per_second() * 1e-9;
    text += &match &header.peaks {
        Peaks::Cpu(cpu) => format!(
            "this machine, {} threads: reads {gigabytes:.1} GB/s, multiplies {gigaflops:.0} GFLOP/s in f32\n",
            cpu.threads
        ),
        Peaks::Gpu(gpu) => format!(
            "{}: copies {gigabytes:.0} GB/s, multiplies {:.0} TFLOP/s in bf16\n",
            gpu.device,
            gigaflops * 1e-3
        ),
    };
    if let Some(label) = header.label {
        text += &format!("{label}: a row's result depends on the other rows of the product\n");
    }
    // The table has a column for the time to submit a step only if the device is asynchronous.
    let submit = if header.peaks.runs_behind() { "  to submit" } else { "" };
    let expected = if header.expects { "  expected ms" } else { "" };
    text + &format!(
        "\ncontext  batch  mode         v  groups  step ms{expected}{submit}   tokens/s  of the floor\n"
    )
}

fn measured_text(measured: &Measured, expects: bool) -> String {
    let Measured { mode, context, batch, verify_len, groups, step_seconds, tokens_per_second, .. } = measured;
    let submit = measured.submit_seconds.map_or(String::new(), |s| format!("  {:>9.2}", s * 1e3));
    let expected = match measured.expected_seconds {
        Some(seconds) => format!("  {:>11.2}", seconds * 1e3),
        None if expects => format!("  {:>11}", "-"),
        None => String::new(),
    };
    let (step, share) = (step_seconds * 1e3, measured.share_of_floor * 100.0);
    let launches = measured.launches.map_or(String::new(), |launches| format!("  {launches}"));
    format!(
        "{context:>7}  {batch:>5}  {mode:<10}  {verify_len:>2}  {groups:>6}  {step:>7.2}{expected}{submit}  \
         {tokens_per_second:>9.1}  {share:.0}% ({}){launches}\n",
        measured.bound_by
    )
}

fn skipped_text(skipped: &Skipped) -> String {
    let Skipped { context, batch, .. } = skipped;
    let number = |number: Option<usize>| number.map_or(String::new(), |number| number.to_string());
    let launches = skipped.launches.map_or(String::new(), |launches| format!("{launches} "));
    format!(
        "{context:>7}  {batch:>5}  {:<10}  {:>2}  {:>6}  {launches}skipped: {}\n",
        skipped.mode.unwrap_or("all"),
        number(skipped.verify_len),
        number(skipped.groups),
        skipped.skipped
    )
}

#[cfg(test)]
mod tests {
    use flexdraft::device::gpu;

    use super::super::peaks::CpuPeaks;
    use super::*;

    const CPU: Peaks =
        Peaks::Cpu(CpuPeaks { read_bytes_per_second: 1e10, flops_per_second: 1e11, threads: 2 });

    fn header(peaks: Peaks) -> Header {
        Header {
            model: "m".into(),
            device: "d".into(),
            dtype: "bf16",
            block_size: 16,
            verify_lens: vec![3, 15],
            peaks,
            label: None,
            expects: false,
        }
    }

    fn gpu() -> Peaks {
        Peaks::Gpu(gpu::Peaks {
            device: "A GPU".into(),
            copy_bytes_per_second: 3e12,
            product_flops_per_second: 8e14,
        })
    }

    fn measured(peaks: &Peaks) -> Measured {
        let times = Times { step: 0.01, submit: 0.004, steps: 7 };
        let work = Work { bytes: 1.5e10, flops: 1e12 };
        Measured::new(&Step::parallel(3, 16, 2), (4, 1024), times, 7.1, &work, peaks)
    }

    fn written(json: bool, peaks: Peaks) -> String {
        written_with(json, peaks, None)
    }

    fn written_with(json: bool, peaks: Peaks, label: Option<&'static str>) -> String {
        let mut out = Vec::new();
        let header = Header { label, ..header(peaks.clone()) };
        let mut report = Report::new(&mut out, json, &header).unwrap();
        report.measured(&measured(&peaks)).unwrap();
        let why = || "out of memory".to_owned();
        report.skipped(&Skipped::step(&Step::sequential(3, 16), (64, 8192), why())).unwrap();
        report.skipped(&Skipped::case((64, 8192), why())).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_floor_of_a_gpu() {
        let line = measured(&gpu());
        // The step's floor is 5 ms of copying or 1.25 ms of products, whichever is longer.
        assert!((line.floor_seconds - 0.005).abs() < 1e-9, "{line:?}");
        assert!((line.share_of_floor - 0.5).abs() < 1e-9, "{line:?}");
        assert_eq!((line.bound_by, line.submit_seconds), ("memory", Some(0.004)));
        // A step that verifies three draft tokens commits at most four tokens, although 7.1 were requested.
        assert_eq!((line.tokens_per_step, line.tokens_per_second), (4.0, 1600.0));
        assert_eq!(measured(&CPU).submit_seconds, None);
        assert_eq!(measured(&CPU).bound_by, "arithmetic");
    }

    #[test]
    fn lines_of_json() {
        let lines: Vec<serde_json::Value> =
            written(true, gpu()).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 4);
        assert_eq!(lines[0]["ceilings"]["product_flops_per_second"], 8e14);
        assert_eq!(lines[0]["verify_lens"], serde_json::json!([3, 15]));
        assert_eq!((&lines[1]["mode"], &lines[1]["verify_len"]), (&"parallel".into(), &3.into()));
        assert_eq!((&lines[1]["groups"], &lines[1]["submit_seconds"]), (&2.into(), &0.004.into()));
        let skipped = serde_json::json!({
            "mode": "sequential", "context": 8192, "batch": 64, "verify_len": 3, "groups": 0,
            "skipped": "out of memory",
        });
        assert_eq!(lines[2], skipped);
        assert_eq!((&lines[3]["mode"], &lines[3]["batch"]), (&serde_json::Value::Null, &64.into()));
    }

    #[test]
    fn lines_of_a_way_to_launch() {
        let mut out = Vec::new();
        let mut report = Report::new(&mut out, false, &header(gpu())).unwrap();
        report.measured(&measured(&gpu()).launched(Some("graphs"))).unwrap();
        let skipped = Skipped::step(&Step::sequential(3, 16), (64, 8192), "out of memory".into());
        report.skipped(&skipped.launched(Some("each"))).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains("50% (memory)  graphs\n"), "{text}");
        assert!(text.contains("  each skipped: out of memory\n"), "{text}");
    }

    #[test]
    fn every_line_is_labelled() {
        let label = "not lossless (--products any)";
        let lines = written_with(true, gpu(), Some(label));
        for line in lines.lines() {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            assert_eq!(line["label"], label);
        }
        let text = written_with(false, gpu(), Some(label));
        assert_eq!(text.matches(label).count(), 4, "{text}");
        assert!(!written(false, gpu()).contains(label) && !written(true, gpu()).contains("label"));
    }

    #[test]
    fn lines_of_text() {
        let text = written(false, gpu());
        assert!(text.contains("A GPU: copies 3000 GB/s, multiplies 800 TFLOP/s in bf16"), "{text}");
        let columns = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let lines: Vec<_> = text.lines().map(columns).collect();
        let last = lines.len() - 3;
        let expected = ["1024", "4", "parallel", "3", "2", "10.00", "4.00", "1600.0", "50%", "(memory)"];
        assert_eq!(lines[last], expected);
        assert_eq!(lines[last + 1].join(" "), "8192 64 sequential 3 0 skipped: out of memory");
        assert_eq!(lines[last + 2].join(" "), "8192 64 all skipped: out of memory");
        assert!(written(false, CPU).contains("this machine, 2 threads: reads 10.0 GB/s"));
    }
}
