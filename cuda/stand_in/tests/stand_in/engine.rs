//! Tests the decode engine on the stand-in: its results, and its behaviour after a call has failed.

use std::collections::HashMap;
use std::fs;

use flexdraft::acceptance::Rule;
use flexdraft::decode::{Engine, EngineOptions, Mode, Request};
use flexdraft::device::gpu::{CpuProducts, CudaOptions, Gpu, Peaks, ProductAlgorithms};
use flexdraft::device::{AttentionShape, Device, Rope};
use flexdraft::device_selection::self_test;
use flexdraft::kernels::Kernels;
use flexdraft::model::weights::{ChainConfig, ChainKind, ChainWeights, LinearWeights};
use flexdraft::model::{Architecture, DrafterWeights, Model, ModelConfig, TargetWeights};
use flexdraft::runtime::{Simt, SimtOptions};
use flexdraft::sampling::SamplingParams;
use flexdraft::tensor::{DType, Tensor};

use crate::noise::halves;
use crate::process::{Ended, ended, succeeds, this_test};

/// Options without a trial of algorithms, in which the number of calls depends on times.
const WITHOUT_TRIAL: CudaOptions =
    CudaOptions { algorithms: ProductAlgorithms::Any, graphs: true, dependent_launches: true };

/// What the stand-in prints when a call fails by a policy.
const FAILS: &str = "fails by a policy";

/// What a process prints before and after each step, so that its output shows when a call failed.
const STEP_BEGINS: &str = "a step begins";
const STEP_ENDS: &str = "a step ends";

pub fn config() -> ModelConfig {
    ModelConfig {
        architecture: Architecture::Qwen3,
        hidden_size: 64,
        intermediate_size: 96,
        layers: 2,
        attention: AttentionShape { q_heads: 2, kv_heads: 1, head_dim: 64 },
        vocab_size: 200,
        context_len: 256,
        rms_norm_eps: 1e-6,
        rope: Rope { inv_freq: (0..32).map(|i| 10_000f32.powf(-(i as f32) / 32.0)).collect(), scale: 1.0 },
        layers_without_rope: Vec::new(),
        attention_bias: false,
        mlp_bias: false,
        tied_embeddings: false,
        eos_ids: Vec::new(),
    }
}

/// A drafter whose weights are random.
#[derive(Clone, Copy)]
enum Drafter {
    FlexDraft,
    Chained(ChainKind),
    Orthrus,
}

impl Drafter {
    fn weights(self, target: &TargetWeights) -> DrafterWeights {
        let chain = match self {
            Self::Orthrus => return DrafterWeights::random_orthrus(target, 4, DType::Bf16, 2).unwrap(),
            Self::FlexDraft => None,
            Self::Chained(kind) => Some(chain(kind)),
        };
        DrafterWeights { chain, ..DrafterWeights::random(&config(), 1, 4, 16, DType::Bf16, 2).unwrap() }
    }
}

/// Returns a chain of rank 16.
fn chain(kind: ChainKind) -> ChainWeights {
    let hidden = config().hidden_size;
    let shapes = match kind {
        ChainKind::Pair => [[16, hidden]; 2],
        ChainKind::Hidden => [[16, 2 * hidden], [hidden, 16]],
    };
    let [first, second] = shapes.map(|shape| {
        let weight = Tensor::from_bf16(&shape, halves(shape[1] as u64, shape[0] * shape[1])).unwrap();
        LinearWeights { weight, bias: None }
    });
    ChainWeights { config: ChainConfig { kind, top_k: 5 }, first, second }
}

/// Decodes three requests in batches of two. Repeats a step that fails. Returns the tokens of
/// each request and the number of failures; an error before the first step counts as a failure without tokens.
fn decoded_in(mode: Mode, drafter: Drafter, device: impl Device) -> (Vec<Vec<u32>>, usize) {
    let target = TargetWeights::random(&config(), DType::Bf16, 1).unwrap();
    let drafter = drafter.weights(&target);
    let Ok(model) = Model::new(device, &target, Some(&drafter)) else { return (Vec::new(), 1) };
    let options =
        EngineOptions { max_batch: 2, cache_tokens: 256, prefill_rows: 16, ..EngineOptions::default() };
    let Ok(mut engine) = Engine::new(model, mode, options) else { return (Vec::new(), 1) };
    let mut ids = Vec::new();
    for seed in 0..3 {
        let request = Request {
            sampling: SamplingParams::at_temperature(1.0),
            rule: Rule::Rejection,
            seed,
            ..Request::new((0..20 + seed as u32).map(|id| id * 7 % 200).collect(), 8)
        };
        ids.push(engine.add(request).unwrap());
    }
    let (mut tokens, mut failures) = (HashMap::new(), 0);
    while !engine.is_idle() {
        eprintln!("{STEP_BEGINS}");
        let stepped = engine.step();
        eprintln!("{STEP_ENDS}");
        match stepped {
            Ok(committed) => {
                for committed in committed {
                    tokens.entry(committed.id).or_insert_with(Vec::new).extend(committed.tokens);
                }
            }
            Err(_) => failures += 1,
        }
        assert!(failures < 10, "the engine does not recover");
    }
    (ids.iter().map(|id| tokens.remove(id).unwrap()).collect(), failures)
}

fn decoded(device: impl Device) -> (Vec<Vec<u32>>, usize) {
    decoded_in(Mode::Parallel, Drafter::FlexDraft, device)
}

fn expected(mode: Mode, drafter: Drafter) -> Vec<Vec<u32>> {
    let kernels = Kernels::new(Simt::new(SimtOptions::default()));
    let stream = kernels.runtime().stream();
    decoded_in(mode, drafter, Gpu::new(kernels, stream, CpuProducts::new(1).unwrap())).0
}

/// Drafting changes no token even if no algorithm for matrix products is row-invariant.
#[test]
fn passes_its_self_test_on_padded_products() {
    succeeds(this_test!(), "", &[("PRODUCTS", "varying")], || {
        self_test(Gpu::cuda(0).unwrap()).unwrap();
    });
}

/// The error of an allocation is returned, whether memory runs out at the first allocation or at the sixth, which is
/// the workspace of the matrix product.
#[test]
fn peaks_without_memory_are_an_error() {
    for nth in [1, 6] {
        let call = format!("cuMemAllocAsync:{nth}");
        succeeds(this_test!(), &call, &[("FAIL", &call), ("SKIP", "large")], || {
            let error = Peaks::of_device(0).unwrap_err().to_string();
            assert!(error.contains("CUDA_ERROR_OUT_OF_MEMORY"), "{error}");
        });
    }
}

/// Every kernel of every mode and every drafter waits for earlier launches before it uses what they use. The checked kernels
/// find an access that comes too early, in steps that run as graphs and in steps that do not. `planted_waits.sh` takes the
/// wait out of each kernel, and sees this test fail.
#[test]
fn no_kernel_begins_too_early() {
    let counted = tempfile::NamedTempFile::new().unwrap();
    let policies = [("CHECKING", "accesses"), ("CALLS", counted.path().to_str().unwrap())];
    succeeds(this_test!(), "", &policies, || {
        for (mode, drafter) in [
            (Mode::Parallel, Drafter::FlexDraft),
            (Mode::Sequential, Drafter::FlexDraft),
            (Mode::Autoregressive, Drafter::FlexDraft),
            (Mode::Parallel, Drafter::Chained(ChainKind::Hidden)),
            (Mode::Sequential, Drafter::Chained(ChainKind::Pair)),
            (Mode::Sequential, Drafter::Orthrus),
        ] {
            let decoded = decoded_in(mode, drafter, Gpu::cuda(0).unwrap());
            assert_eq!(decoded, (expected(mode, drafter), 0));
        }
    });
    let counts = fs::read_to_string(counted.path()).unwrap_or_default();
    // The process that runs the case counts no calls.
    assert!(counts.is_empty() || counts.contains("cuLaunchKernelEx "), "{counts}");
}

/// A decode step that fails can be repeated, whichever call of the driver failed.
#[test]
fn a_failed_call_changes_no_token() {
    let counted = tempfile::NamedTempFile::new().unwrap();
    let path = counted.path().to_str().unwrap();
    succeeds(this_test!(), "none", &[("CALLS", path), ("STREAMS", "late")], || {
        assert_eq!(
            decoded(Gpu::cuda_with(0, WITHOUT_TRIAL).unwrap()),
            (expected(Mode::Parallel, Drafter::FlexDraft), 0)
        );
    });
    let counts = fs::read_to_string(path).unwrap();
    let mut outside = Vec::new();
    // Each call, with the number of calls of its name behind the late one.
    for (call, behind) in [
        ("cuMemcpyHtoDAsync", 8),
        ("cuMemcpyDtoHAsync", 8),
        ("cuMemcpyDtoDAsync", 8),
        ("cuMemAllocAsync", 8),
        ("cuLaunchKernelEx", 8),
        ("cuStreamIsCapturing", 8),
        ("cuStreamSynchronize", 20),
        ("cublasLtMatmul", 8),
        ("cuMemHostAlloc", 0),
        ("cuStreamBeginCapture", 0),
        ("cuGraphInstantiate", 0),
        ("cuGraphLaunch", 4),
    ] {
        // The process that runs a case counts no calls, and needs no policy.
        let line = counts.lines().find_map(|line| line.strip_prefix(call)?.strip_prefix(' '));
        let count: u64 = line.map_or(1, |count| count.parse().unwrap());
        // The first calls belong to the loading of the model, the late ones to a step.
        for (case, nth) in [("early", 1 + count / 3), ("late", count.saturating_sub(behind).max(1))] {
            let policies = [("FAIL", &*format!("{call}:{nth}")), ("STREAMS", "late")];
            let Ended { status, stderr } = ended(this_test!(), &format!("{call} {case}"), &policies, || {
                let options = if case == "late" { WITHOUT_TRIAL } else { CudaOptions::default() };
                let Ok(device) = Gpu::cuda_with(0, options) else { return };
                let (tokens, failures) = decoded(device);
                // A failed call that the device makes up for, such as a call in a trial of algorithms, is no failure of
                // the step.
                assert!(failures <= 1, "{failures}");
                assert!(
                    tokens.is_empty() || tokens == expected(Mode::Parallel, Drafter::FlexDraft),
                    "{tokens:?}"
                );
            });
            // A process that runs a case ends in it, or goes on behind another case without output.
            if stderr.is_empty() {
                continue;
            }
            assert!(status.success(), "{call} {case}: {status}\n{stderr}");
            let Some((before, _)) = stderr.split_once(FAILS) else {
                outside.push(format!("{call}:{nth} of {count}, which never comes"));
                continue;
            };
            let in_step = before.matches(STEP_BEGINS).count() > before.matches(STEP_ENDS).count();
            // Steps upload through memory of their own, and ask nothing about captures.
            if !in_step && case == "late" && call != "cuStreamIsCapturing" {
                outside.push(format!("{call}:{nth} of {count}"));
            }
        }
    }
    assert!(outside.is_empty(), "calls that fail outside of a step: {outside:?}");
}
