//! Launches in a CUDA graph read the current contents of their operands at each replay: attention, sampling and
//! acceptance.

use bytemuck::Zeroable;
use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use flexdraft::acceptance::Rule;
use flexdraft::kernels::acceptance::{
    Accept, MAX_COMMITTED, SampledRows, Verdict, Verify, VerifySequence, accept_workspace_len,
};
use flexdraft::kernels::attention::{JointAttention, attention_workspace_len};
use flexdraft::kernels::sampling::{LogitRows, RowSampling, RowStats, Sample, workspace_len};
use flexdraft::kernels::{KvStrides, PagedKv, Paging, PassTables};
use flexdraft::layout::{AttentionShape, GroupSet, Pass, SequenceRows};
use flexdraft::random::Stream;
use flexdraft::runtime::{Cuda, Runtime};
use flexdraft::sampling::SamplingParams;
use half::bf16;

use crate::bench::{Bench, cuda, halves, noise};

type Memory<T> = <Cuda as Runtime>::Memory<T>;

const SHAPE: AttentionShape = AttentionShape { q_heads: 4, kv_heads: 2, head_dim: 64 };
const PAGING: Paging = Paging { pages: 24, page_size: 16 };
const CANDIDATES: usize = 3;
const VOCAB: usize = 1000;
const SPLIT: usize = 64;

/// The operands of a step, and its results.
struct Step {
    tables: PassTables<Cuda>,
    qkv: Memory<bf16>,
    k: Memory<bf16>,
    v: Memory<bf16>,
    attended: Memory<bf16>,
    attention_workspace: Memory<f32>,
    logits: Memory<f32>,
    ways: Memory<RowSampling>,
    stats: Memory<RowStats>,
    workspace: Memory<f32>,
    requests: Memory<Verify>,
    tokens: Memory<i32>,
    accept_workspace: Memory<f32>,
    arrived: Memory<u32>,
    verdicts: Memory<Verdict>,
    committed: Memory<i32>,
    rows: usize,
}

impl Step {
    fn new(gpu: &Bench<Cuda>) -> Self {
        let Bench { kernels, stream } = gpu;
        let pages: Vec<u32> = (0..PAGING.pages as u32).collect();
        let rows =
            SequenceRows { pages: &pages, start: 300, candidates: CANDIDATES, groups: vec![0, 2], slots: 4 };
        let mut tables = PassTables::new(kernels.runtime(), stream, 1, pages.len()).unwrap();
        tables.upload(kernels.runtime(), stream, &Pass { sequences: vec![rows] }, PAGING).unwrap();
        let rows = tables.rows();
        let cached = PAGING.pages * PAGING.page_size * SHAPE.kv_heads * SHAPE.head_dim;
        let way = |row: usize| {
            let numbers = Stream::target_draw(7, 301 + row);
            RowSampling::new(&SamplingParams::at_temperature(0.8), Some(numbers)).unwrap()
        };
        let request = Verify::new(&VerifySequence {
            rule: Rule::Match,
            seed: 7,
            position: 300,
            drafts: CANDIDATES - 1,
            first_target: 0,
            first_draft: None,
            first_token: 0,
            groups: GroupSet::NONE.with(0).with(2),
        });
        let needed = attention_workspace_len(SHAPE, rows, tables.longest(), SPLIT).unwrap();
        Step {
            qkv: gpu.memory(&vec![bf16::ZERO; rows * SHAPE.qkv_cols()]),
            k: gpu.memory(&halves(1, cached)),
            v: gpu.memory(&halves(2, cached)),
            attended: gpu.memory(&vec![bf16::ZERO; rows * SHAPE.out_cols()]),
            attention_workspace: gpu.memory(&vec![0f32; needed]),
            logits: gpu.memory(&vec![0f32; CANDIDATES * VOCAB]),
            ways: gpu.memory(&(0..CANDIDATES).map(way).collect::<Vec<_>>()),
            stats: gpu.memory(&[RowStats::zeroed(); CANDIDATES]),
            workspace: gpu.memory(&vec![0f32; workspace_len(CANDIDATES, VOCAB, false).unwrap()]),
            requests: gpu.memory(&[request.unwrap()]),
            tokens: gpu.memory(&[3, 5]),
            accept_workspace: gpu.memory(&vec![0f32; accept_workspace_len(1, VOCAB).unwrap()]),
            arrived: gpu.memory(&[0u32]),
            verdicts: gpu.memory(&[Verdict::zeroed()]),
            committed: gpu.memory(&[0i32; MAX_COMMITTED]),
            tables,
            rows,
        }
    }

    /// Writes other contents to the operands in place.
    fn fill(&mut self, gpu: &Bench<Cuda>, seed: u64) {
        let Bench { kernels, stream } = gpu;
        let runtime = kernels.runtime();
        let qkv = halves(seed, self.rows * SHAPE.qkv_cols());
        runtime.upload(stream, &qkv, &mut self.qkv, 0).unwrap();
        runtime.upload(stream, &noise(seed + 1, CANDIDATES * VOCAB), &mut self.logits, 0).unwrap();
    }

    fn launch(&mut self, gpu: &Bench<Cuda>) {
        let Bench { kernels, stream } = gpu;
        let runtime = kernels.runtime();
        let strides = KvStrides::token_major(PAGING.page_size, SHAPE.kv_heads, SHAPE.head_dim);
        let attention = JointAttention {
            pass: &self.tables,
            masks: true,
            qkv: runtime.view(stream, &self.qkv),
            cache: PagedKv {
                k: runtime.view(stream, &self.k),
                v: runtime.view(stream, &self.v),
                k_strides: strides,
                v_strides: strides,
            },
            out: runtime.view_mut(stream, &mut self.attended),
            lse: None,
            workspace: runtime.view_mut(stream, &mut self.attention_workspace),
            shape: SHAPE,
            split: SPLIT,
            error: None,
        };
        kernels.joint_attention(stream, &attention).unwrap();
        let sample = Sample {
            vocab: VOCAB,
            stride: VOCAB,
            logits: LogitRows::Read(runtime.view(stream, &self.logits)),
            logit_index: None,
            sampling: runtime.view(stream, &self.ways),
            starts: None,
            draft: None,
            calibration: None,
            workspace: runtime.view_mut(stream, &mut self.workspace),
            stats: runtime.view_mut(stream, &mut self.stats),
            error: None,
        };
        kernels.sample(stream, sample).unwrap();
        let accept = Accept {
            vocab: VOCAB,
            stride: VOCAB,
            sequences: runtime.view(stream, &self.requests),
            target_partials: None,
            any_block: false,
            tokens: runtime.view(stream, &self.tokens),
            target: SampledRows {
                logits: runtime.view(stream, &self.logits),
                stats: runtime.view(stream, &self.stats),
            },
            draft: None,
            workspace: runtime.view_mut(stream, &mut self.accept_workspace),
            arrived: runtime.view_mut(stream, &mut self.arrived),
            verdicts: runtime.view_mut(stream, &mut self.verdicts),
            committed: runtime.view_mut(stream, &mut self.committed),
            error: None,
        };
        kernels.accept(stream, &accept).unwrap();
    }

    fn results(&self, gpu: &Bench<Cuda>) -> (Vec<bf16>, Vec<Verdict>, Vec<i32>) {
        let attended = gpu.host(&self.attended, self.rows * SHAPE.out_cols());
        (attended, gpu.host(&self.verdicts, 1), gpu.host(&self.committed, MAX_COMMITTED))
    }
}

/// Captured launches give the results of direct launches. cudarc's event tracking is off, because a capture must not
/// wait for its events.
#[test]
fn capture() {
    let Some(gpu) = cuda() else { return };
    let stream = &gpu.stream;
    // SAFETY: this test uses all of its memory on one stream.
    unsafe { stream.context().disable_event_tracking() };
    let mut step = Step::new(&gpu);
    stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).unwrap();
    step.launch(&gpu);
    let graph = stream.end_capture(CUgraphInstantiate_flags(0)).unwrap().unwrap();
    let mut seen = Vec::new();
    for seed in [3, 40] {
        step.fill(&gpu, seed);
        graph.launch().unwrap();
        let captured = step.results(&gpu);
        step.launch(&gpu);
        assert_eq!(captured, step.results(&gpu));
        seen.push(captured);
    }
    assert_ne!(seen[0].0, seen[1].0);
}
