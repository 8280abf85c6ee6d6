//! Tests of the command on a GPU device whose driver is the stand-in of `cuda/stand_in`: the host side of `--device
//! cuda:0`.

use std::collections::BTreeMap;
use std::env;
use std::os::unix::fs::symlink;
use std::path::Path;

use flexdraft::acceptance::Rule;
use flexdraft::decode::{BlockRecord, Engine, EngineOptions, Mode, Record, Request};
use flexdraft::device::gpu::{CpuProducts, Gpu};
use flexdraft::kernels::Kernels;
use flexdraft::model::{DrafterWeights, Model, TargetWeights};
use flexdraft::runtime::{Simt, SimtOptions};
use flexdraft::sampling::SamplingParams;
use tempfile::TempDir;

use crate::common::{Run, Sample, arg, finished, flexdraft, tiny};

const TOKENS: usize = 10;

/// Runs the command on the stand-in with the given policies: variables named without the prefix `FLEXDRAFT_STAND_IN_`.
fn on_stand_in(args: &[&str], policies: &[(&str, &str)]) -> Run {
    let library = env::current_exe().unwrap().with_file_name("libflexdraft_stand_in.so");
    assert!(library.exists(), "{}", library.display());
    let libraries = TempDir::new().unwrap();
    for name in ["libcuda.so", "libcublasLt.so"] {
        symlink(&library, libraries.path().join(name)).unwrap();
    }
    let earlier = env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let paths = std::iter::once(libraries.path().to_owned()).chain(env::split_paths(&earlier));
    let mut command = flexdraft(args);
    command.env("LD_LIBRARY_PATH", env::join_paths(paths).unwrap());
    for (policy, value) in policies {
        command.env(format!("FLEXDRAFT_STAND_IN_{policy}"), value);
    }
    finished(command.output().unwrap())
}

/// Decodes on the stand-in and returns the samples, after a check that no device memory was leaked.
fn generated(args: &[&str], policies: &[(&str, &str)]) -> Vec<Sample> {
    let tokens = TOKENS.to_string();
    let mut common = vec!["--json", "--device", "cuda:0", "--ignore-eos"];
    if !args.contains(&"--max-new-tokens") {
        common.extend(["--max-new-tokens", &tokens]);
    }
    let run = on_stand_in(&[&common[..], args].concat(), policies);
    assert_eq!(run.code, Some(0), "{args:?}, {policies:?}: {}", run.stderr);
    run.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Returns what `run` returns under one more policy, and the number of driver calls by name.
fn counting<T>(
    policies: &[(&str, &str)],
    run: impl FnOnce(&[(&str, &str)]) -> T,
) -> (T, BTreeMap<String, u64>) {
    let file = tempfile::NamedTempFile::new().unwrap();
    let result = run(&[policies, &[("CALLS", file.path().to_str().unwrap())]].concat());
    let lines = std::fs::read_to_string(file.path()).unwrap();
    let count = |line: &str| {
        let (name, count) = line.split_once(' ').unwrap();
        (name.to_owned(), count.parse().unwrap())
    };
    (result, lines.lines().map(count).collect())
}

/// Decodes as [`generated`] does, and also returns the number of driver calls by name.
fn counted(args: &[&str], policies: &[(&str, &str)]) -> (Vec<Sample>, BTreeMap<String, u64>) {
    counting(policies, |policies| generated(args, policies))
}

/// The compared result of a request: its tokens, and every drafted block with the bits of its confidences.
type Got = (Vec<u32>, Vec<(u32, Vec<u32>, Vec<u32>)>);

fn bits(confidence: &[f32]) -> Vec<u32> {
    confidence.iter().map(|c| c.to_bits()).collect()
}

/// Returns what the GPU device on the emulator gives for the same requests, in this process.
fn expected(mode: Mode, rule: Rule, temperature: f32, prompt: &[u32], samples: u64) -> Vec<Got> {
    let pair = Path::new(env!("CARGO_MANIFEST_DIR")).join("../demo/tiny");
    let target = TargetWeights::read(&pair.join("target")).unwrap();
    let drafter = DrafterWeights::read(&pair.join("drafter"), &target.config).unwrap();
    let kernels = Kernels::new(Simt::new(SimtOptions::default()));
    let stream = kernels.runtime().stream();
    let device = Gpu::new(kernels, stream, CpuProducts::new(1).unwrap());
    let model = Model::new(device, &target, Some(&drafter)).unwrap();
    let options =
        EngineOptions { max_batch: samples as usize, cache_tokens: 2048, ..EngineOptions::default() };
    let mut engine = Engine::new(model, mode, options).unwrap();
    let mut got: BTreeMap<_, Got> = BTreeMap::new();
    for seed in 0..samples {
        let request = Request {
            sampling: SamplingParams { temperature, top_k: 0, top_p: 1.0, min_p: 0.0 },
            rule,
            seed,
            confidence: flexdraft::decode::Confidence { threshold: 0.01, strategy: Default::default() },
            record: true,
            ..Request::new(prompt.to_vec(), TOKENS)
        };
        got.insert(engine.add(request).unwrap(), Got::default());
    }
    while !engine.is_idle() {
        for committed in engine.step().unwrap() {
            let got = got.get_mut(&committed.id).unwrap();
            got.0.extend(committed.tokens);
            if let Some(record) = committed.record {
                let (Record::Prefill(block)
                | Record::Step(flexdraft::decode::StepRecord { next: block, .. })) = record;
                let BlockRecord { bonus, draft, confidence } = block;
                got.1.push((bonus, draft, bits(&confidence)));
            }
        }
    }
    got.into_values().collect()
}

fn got(sample: Sample) -> Got {
    let prefill = sample.prefill.unwrap();
    let mut blocks = vec![(prefill.bonus, prefill.draft, bits(&prefill.confidence))];
    blocks.extend(sample.steps.into_iter().map(|step| (step.bonus, step.draft, bits(&step.confidence))));
    (sample.output_ids, blocks)
}

/// The cases combine modes, rules, batch sizes, the times at which streams run work, and graphs in pairs.
#[test]
fn every_mode_gives_the_emulators_tokens_drafts_and_confidences() {
    let cases = [
        (Mode::Parallel, Rule::Match, "0", 1, "late", true),
        (Mode::Sequential, Rule::Match, "0", 5, "late", false),
        (Mode::Parallel, Rule::Rejection, "1", 5, "late", false),
        (Mode::Sequential, Rule::Block, "1", 1, "late", true),
        (Mode::Parallel, Rule::Block, "1", 5, "eager", true),
        (Mode::Autoregressive, Rule::Rejection, "1", 5, "late", true),
        (Mode::Autoregressive, Rule::Match, "0", 1, "eager", false),
        (Mode::Sequential, Rule::Rejection, "1", 5, "eager", true),
    ];
    for (mode, rule, temperature, samples, streams, graphs) in cases {
        let mode_name = match mode {
            Mode::Parallel => "parallel",
            Mode::Sequential => "sequential",
            Mode::Autoregressive => "ar",
        };
        let rule_name = match rule {
            Rule::Match => "match",
            Rule::Block => "block",
            _ => "rejection",
        };
        let count = samples.to_string();
        let mut args =
            vec!["--mode", mode_name, "--rule", rule_name, "--temperature", temperature, "--samples", &count];
        args.extend((!graphs).then_some("--no-graphs"));
        let (found, calls) = counted(&args, &[("STREAMS", streams)]);
        let count = |name| calls.get(name).copied().unwrap_or(0);
        // A trial of algorithms also launches graphs, but it uploads each of them first.
        let launched = count("cuGraphLaunch") - count("cuGraphUpload");
        assert!(graphs || launched == 0, "{calls:?}");
        // The steps of an autoregressive batch are alike.
        assert!(!graphs || mode != Mode::Autoregressive || launched > 0, "{calls:?}");
        let prompt = found[0].prompt_ids.clone();
        let expected = expected(mode, rule, temperature.parse().unwrap(), &prompt, samples);
        assert_eq!(found.into_iter().map(got).collect::<Vec<_>>(), expected, "{args:?}, {streams}");
    }
}

/// Returns the calls of the driver per step, once steps like it have run: the difference of two runs, the second of
/// them with more steps.
fn calls_per_step(mode: &str, more: &[&str]) -> f64 {
    let run = |tokens: &str| {
        let args = ["--mode", mode, "--temperature", "0", "--max-new-tokens", tokens];
        // Every step verifies a whole draft. No trial of algorithms and no comparison with other modes adds calls.
        let alike = ["--confidence-threshold", "0", "--products", "any", "--no-compare"];
        // The drafts of this pair are seldom accepted, so there are many steps. No table grows between the two runs.
        let (target, draft) = (tiny("target"), tiny("draft"));
        let pair = ["--target", arg(&target), "--draft", arg(&draft), "--prompt", "def f(x):"];
        let (samples, calls) = counted(&[&args[..], &alike, &pair, more].concat(), &[]);
        let driver: u64 =
            calls.iter().filter(|(name, _)| name.starts_with("cu")).map(|(_, count)| count).sum();
        (driver, samples[0].steps.len() as u64)
    };
    let ((few, few_steps), (many, steps)) = (run("70"), run("94"));
    let per_step = (many - few) as f64 / (steps - few_steps) as f64;
    println!("{mode} {more:?}: {per_step} calls per step, {} steps", steps - few_steps);
    per_step
}

/// The calls include cuBLASLt's and the calls that find the current context.
#[test]
fn a_step_that_repeats_is_few_calls_of_the_driver() {
    for mode in ["ar", "parallel", "sequential"] {
        let calls = calls_per_step(mode, &[]);
        assert!(calls <= 8.0, "{mode}: {calls}");
    }
    let launches = calls_per_step("ar", &["--no-graphs"]);
    assert!(launches > 80.0, "{launches}");
}

#[test]
fn the_cpu_device_gives_the_same_tokens() {
    let tokens = TOKENS.to_string();
    let on_gpu = generated(&["--mode", "parallel"], &[("STREAMS", "late")]);
    let args = [
        "--json",
        "--device",
        "cpu",
        "--dtype",
        "bf16",
        "--mode",
        "parallel",
        "--ignore-eos",
        "--max-new-tokens",
    ];
    let run = finished(flexdraft(&[&args[..], &[&tokens]].concat()).output().unwrap());
    let on_cpu: Sample = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(on_gpu[0].output_ids, on_cpu.output_ids);
}

#[test]
fn auto_takes_a_gpu_that_passes_its_self_test() {
    let args = ["--max-new-tokens", "2", "--no-compare", "--mode", "ar"];
    let Run { code, stderr, .. } = on_stand_in(&args, &[]);
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stderr.contains("Running on cuda:0"), "{stderr}");
}

#[test]
fn auto_refuses_a_gpu_with_a_broken_kernel() {
    let args = ["--max-new-tokens", "2", "--no-compare", "--mode", "ar"];
    let Run { code, stderr, .. } = on_stand_in(&args, &[("SKIP", "silu_mul")]);
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stderr.contains("Running on the CPU, not on cuda:0: its self-test failed"), "{stderr}");
}

#[test]
fn the_steps_are_measured() {
    let args =
        ["bench", "--synthetic", "tiny", "--quick", "--json", "--device", "cuda:0", "--mode", "ar,parallel"];
    let ran = counting(&[("SKIP", "large")], |policies| on_stand_in(&args, policies));
    let (Run { code, stdout, stderr }, calls) = ran;
    assert_eq!(code, Some(0), "{stderr}");
    let lines: Vec<serde_json::Value> =
        stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(lines[0]["device"].as_str().unwrap().contains("H100"), "{stdout}");
    let steps: Vec<_> = lines[1..]
        .iter()
        .map(|line| {
            assert!(line["step_seconds"].as_f64().unwrap() > 0.0, "{line}");
            ["mode", "launches"].map(|key| line[key].as_str().unwrap())
        })
        .collect();
    let launches = ["each", "graphs", "dependent"];
    let expected: Vec<_> =
        ["ar", "parallel"].into_iter().flat_map(|mode| launches.map(|launches| [mode, launches])).collect();
    assert_eq!(steps, expected);
    // Each way makes the driver's calls that it is named after.
    let count = |name| calls.get(name).copied().unwrap_or(0);
    assert!(count("cuLaunchKernel") > 0 && count("cuLaunchKernelEx") > 0, "{calls:?}");
    assert!(count("cuGraphLaunch") > count("cuGraphUpload"), "{calls:?}");
}

#[test]
fn a_lack_of_memory_is_an_error() {
    let args = ["--json", "--device", "cuda:0", "--max-new-tokens", "2"];
    let Run { code, stdout, stderr } = on_stand_in(&args, &[("MEMORY", "50000000")]);
    assert_eq!((code, stdout.as_str()), (Some(1), ""), "{stderr}");
    assert!(stderr.contains("CUDA_ERROR_OUT_OF_MEMORY") && !stderr.contains("stand-in: "), "{stderr}");
}
