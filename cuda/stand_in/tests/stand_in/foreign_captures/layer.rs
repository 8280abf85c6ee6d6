//! Tests that a captured layer, from rotation to attention, serves steps of other lengths.

use flexdraft::kernels::attention::{JointAttention, attention_workspace_len};
use flexdraft::kernels::rope::{NormRopeAppend, RopeTable};
use flexdraft::kernels::{Kernels, KvStrides, PagedKv, PagedKvMut, Paging, PassTables, ScoreChanges};
use flexdraft::layout::{AttentionShape, Pass, RowKind, SequenceRows};
use flexdraft::runtime::{Runtime, Simt, SimtOptions};
use half::bf16;

use super::on_a_foreign_stream;
use crate::process::{succeeds, this_test};

const SHAPE: AttentionShape = AttentionShape { q_heads: 2, kv_heads: 1, head_dim: 64 };
const PAGING: Paging = Paging { pages: 8, page_size: 64 };
const PAGES: [[u32; 4]; 2] = [[0, 1, 2, 3], [4, 5, 6, 7]];
const CANDIDATES: usize = 2;
const ROWS: usize = PAGES.len() * CANDIDATES;
/// Rows of the operands, the last ones padding.
const OPERAND_ROWS: usize = ROWS + 3;
const SPLIT: usize = 64;
const LONGEST: usize = 250;
/// The starts of the sequences of the steps that the graph serves.
const STEPS: [[usize; 2]; 4] = [[200, 3], [0, 0], [LONGEST - CANDIDATES, 64], [63, 130]];

/// The operands of a layer's attention, on any runtime.
struct Layer<R: Runtime> {
    tables: PassTables<R>,
    inv_freq: R::Memory<f32>,
    cos_sin: R::Memory<f32>,
    qkv: R::Memory<bf16>,
    k: R::Memory<bf16>,
    v: R::Memory<bf16>,
    out: R::Memory<bf16>,
    workspace: R::Memory<f32>,
}

fn numbers(seed: usize, len: usize) -> Vec<bf16> {
    (0..len).map(|i| bf16::from_f32(((i * 37 + seed * 11) % 101) as f32 / 50.0 - 1.0)).collect()
}

impl<R: Runtime> Layer<R> {
    fn new(kernels: &Kernels<R>, stream: &R::Stream) -> Self {
        let runtime = kernels.runtime();
        let workspace = attention_workspace_len(SHAPE, OPERAND_ROWS, LONGEST, SPLIT).unwrap();
        let cached = PAGING.pages * PAGING.page_size * SHAPE.head_dim;
        let mut layer = Self {
            tables: PassTables::new(runtime, stream, PAGES.len(), PAGES[0].len()).unwrap(),
            inv_freq: runtime.allocate(stream, SHAPE.head_dim / 2).unwrap(),
            cos_sin: runtime.allocate(stream, OPERAND_ROWS * SHAPE.head_dim).unwrap(),
            qkv: runtime.allocate(stream, OPERAND_ROWS * SHAPE.qkv_cols()).unwrap(),
            k: runtime.allocate(stream, cached).unwrap(),
            v: runtime.allocate(stream, cached).unwrap(),
            out: runtime.allocate(stream, OPERAND_ROWS * SHAPE.out_cols()).unwrap(),
            workspace: runtime.allocate(stream, workspace).unwrap(),
        };
        let inv_freq: Vec<f32> = (0..SHAPE.head_dim / 2).map(|i| 0.7f32.powi(i as i32)).collect();
        runtime.upload(stream, &inv_freq, &mut layer.inv_freq, 0).unwrap();
        layer
    }

    /// Fills the operands for a step.
    fn fill(&mut self, kernels: &Kernels<R>, stream: &R::Stream, step: [usize; 2]) {
        let runtime = kernels.runtime();
        let sequence = |(pages, start): (&'static [u32; 4], usize)| SequenceRows {
            pages,
            start,
            candidates: CANDIDATES,
            groups: Vec::new(),
            slots: 0,
        };
        let pass = Pass { sequences: PAGES.iter().zip(step).map(sequence).collect() };
        self.tables.upload(runtime, stream, &pass, PAGING).unwrap();
        let cached = PAGING.pages * PAGING.page_size * SHAPE.head_dim;
        runtime.upload(stream, &numbers(step[0], OPERAND_ROWS * SHAPE.qkv_cols()), &mut self.qkv, 0).unwrap();
        runtime.upload(stream, &numbers(step[1] + 1, cached), &mut self.k, 0).unwrap();
        runtime.upload(stream, &numbers(step[1] + 2, cached), &mut self.v, 0).unwrap();
    }

    fn launch(&mut self, kernels: &Kernels<R>, stream: &R::Stream) {
        let runtime = kernels.runtime();
        let strides = KvStrides::token_major(PAGING.page_size, SHAPE.kv_heads, SHAPE.head_dim);
        let table = RopeTable {
            pass: &self.tables,
            inv_freq: runtime.view(stream, &self.inv_freq),
            scale: 1.0,
            cos_sin: runtime.view_mut(stream, &mut self.cos_sin),
        };
        kernels.rope_table(stream, &table).unwrap();
        drop(table);
        let append = NormRopeAppend {
            pass: &self.tables,
            kind: RowKind::Candidates,
            qkv: runtime.view_mut(stream, &mut self.qkv).into(),
            cos_sin: runtime.view(stream, &self.cos_sin),
            norms: None,
            eps: 1e-6,
            cache: PagedKvMut {
                k: runtime.view_mut(stream, &mut self.k),
                v: runtime.view_mut(stream, &mut self.v),
                k_strides: strides,
                v_strides: strides,
            },
            shape: SHAPE,
            error: None,
        };
        kernels.norm_rope_append(stream, &append).unwrap();
        drop(append);
        let attention = JointAttention {
            pass: &self.tables,
            masks: true,
            qkv: runtime.view(stream, &self.qkv).into(),
            cache: PagedKv {
                k: runtime.view(stream, &self.k),
                v: runtime.view(stream, &self.v),
                k_strides: strides,
                v_strides: strides,
            },
            out: runtime.view_mut(stream, &mut self.out),
            lse: None,
            workspace: runtime.view_mut(stream, &mut self.workspace),
            shape: SHAPE,
            split: SPLIT,
            scores: ScoreChanges::default(),
            error: None,
        };
        kernels.joint_attention(stream, &attention).unwrap();
    }

    fn result(&self, kernels: &Kernels<R>, stream: &R::Stream) -> Vec<u16> {
        let mut out = vec![bf16::NAN; OPERAND_ROWS * SHAPE.out_cols()];
        kernels.runtime().download(stream, &self.out, 0, &mut out).unwrap();
        out.iter().map(|x| x.to_bits()).collect()
    }
}

/// Returns the results of the steps, each launched anew on the emulator.
fn expected() -> Vec<Vec<u16>> {
    let kernels = Kernels::new(Simt::new(SimtOptions::default()));
    let stream = kernels.runtime().stream();
    let step = |step| {
        let mut layer = Layer::new(&kernels, &stream);
        layer.fill(&kernels, &stream, step);
        layer.launch(&kernels, &stream);
        layer.result(&kernels, &stream)
    };
    STEPS.map(step).to_vec()
}

#[test]
fn a_captured_layer_serves_steps_of_other_lengths() {
    for streams in ["eager", "late"] {
        succeeds(this_test!(), streams, &[("STREAMS", streams)], || {
            on_a_foreign_stream(|foreign| {
                let (kernels, stream) = (&foreign.bench.kernels, &foreign.bench.stream);
                let mut layer = Layer::new(kernels, stream);
                // The captured step is the longest that the graph has to serve.
                layer.fill(kernels, stream, [LONGEST - CANDIDATES; 2]);
                // SAFETY: the operands stay where they are.
                let graph = unsafe { foreign.captured(|| layer.launch(kernels, stream)) };
                let mut found = Vec::new();
                for step in STEPS {
                    layer.fill(kernels, stream, step);
                    graph.launch();
                    found.push(layer.result(kernels, stream));
                }
                assert_eq!(found, expected());
                // The steps differ, and padding rows are zeros.
                assert!(found.windows(2).all(|pair| pair[0] != pair[1]));
                let padding = ROWS * SHAPE.out_cols();
                assert!(found.iter().all(|out| out[padding..].iter().all(|&bits| bits == 0)));
            });
        });
    }
}
