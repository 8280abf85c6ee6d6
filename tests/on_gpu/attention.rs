//! The attention of one layer on a GPU and on the SIMT emulator: rotation, append, joint attention.

use flexdraft::kernels::attention::{JointAttention, attention_workspace_len};
use flexdraft::kernels::glue::{NormRopeAppend, RopeTable};
use flexdraft::kernels::{KvStrides, PagedKv, PagedKvMut, Paging, PassTables};
use flexdraft::layout::{AttentionShape, Pass, RowKind, SequenceRows};
use flexdraft::runtime::Runtime;
use half::bf16;

use crate::bench::{Bench, halves, noise};
use crate::{Case, close, compare, f32s};

struct Attention {
    shape: AttentionShape,
    page_size: usize,
    split: usize,
    head_major: bool,
}

impl Case for Attention {
    /// q and k after the rotation, the cache, the attention's output, and its log-sum-exp.
    type Output = [Vec<f32>; 4];

    fn run<B: Runtime>(&self, bench: &Bench<B>) -> Self::Output {
        let Bench { kernels, stream } = bench;
        let runtime = kernels.runtime();
        let Attention { shape, page_size, split, head_major } = *self;
        let sequences = [(300usize, 4usize, vec![0, 2, 3], 5usize), (63, 1, vec![], 0), (17, 0, vec![2], 16)];
        let mut next = 0u32;
        let pages: Vec<Vec<u32>> = sequences
            .iter()
            .map(|(start, ..)| {
                (0..(start + 8).div_ceil(page_size))
                    .map(|_| {
                        next += 1;
                        next
                    })
                    .collect()
            })
            .collect();
        let page_count = next as usize + 1;
        let layout = Pass {
            sequences: sequences
                .iter()
                .zip(&pages)
                .map(|((start, candidates, groups, slots), pages)| SequenceRows {
                    pages,
                    start: *start,
                    candidates: *candidates,
                    groups: groups.clone(),
                    slots: *slots,
                })
                .collect(),
        };
        let mut tables = PassTables::new(runtime, stream, 3, pages[0].len()).unwrap();
        tables.upload(runtime, stream, &layout, Paging { pages: page_count, page_size }).unwrap();
        let rows = tables.rows() + 1;
        let head_dim = shape.head_dim;
        let inv_freq: Vec<f32> =
            (0..head_dim / 2).map(|i| 1e4f32.powf(-2.0 * i as f32 / head_dim as f32)).collect();
        let inv_freq = bench.memory(&inv_freq);
        let mut cos_sin = bench.memory(&vec![0f32; rows * head_dim]);
        kernels
            .rope_table(
                stream,
                &RopeTable {
                    pass: &tables,
                    inv_freq: runtime.view(stream, &inv_freq),
                    scale: 1.0,
                    cos_sin: runtime.view_mut(stream, &mut cos_sin),
                },
            )
            .unwrap();
        let strides = match head_major {
            true => KvStrides::head_major(page_size, shape.kv_heads, head_dim),
            false => KvStrides::token_major(page_size, shape.kv_heads, head_dim),
        };
        let cached = page_count * page_size * shape.kv_heads * head_dim;
        let (mut k, mut v) = (bench.memory(&halves(1, cached)), bench.memory(&halves(2, cached)));
        let mut qkv = bench.memory(&halves(3, rows * shape.qkv_cols()));
        let (q_norm, k_norm) = (bench.memory(&noise(4, head_dim)), bench.memory(&noise(5, head_dim)));
        for kind in [RowKind::Candidates, RowKind::Masks] {
            kernels
                .norm_rope_append(
                    stream,
                    &NormRopeAppend {
                        pass: &tables,
                        kind,
                        qkv: runtime.view_mut(stream, &mut qkv),
                        cos_sin: runtime.view(stream, &cos_sin),
                        norms: Some((runtime.view(stream, &q_norm), runtime.view(stream, &k_norm))),
                        eps: 1e-6,
                        cache: PagedKvMut {
                            k: runtime.view_mut(stream, &mut k),
                            v: runtime.view_mut(stream, &mut v),
                            k_strides: strides,
                            v_strides: strides,
                        },
                        shape,
                        error: None,
                    },
                )
                .unwrap();
        }
        let mut out = bench.memory(&vec![bf16::ONE; rows * shape.out_cols()]);
        let mut lse = bench.memory(&vec![0f32; rows * shape.q_heads]);
        let needed = attention_workspace_len(shape, rows, tables.longest(), split).unwrap();
        let mut workspace = bench.memory(&vec![f32::NAN; needed]);
        kernels
            .joint_attention(
                stream,
                &JointAttention {
                    pass: &tables,
                    masks: true,
                    qkv: runtime.view(stream, &qkv),
                    cache: PagedKv {
                        k: runtime.view(stream, &k),
                        v: runtime.view(stream, &v),
                        k_strides: strides,
                        v_strides: strides,
                    },
                    out: runtime.view_mut(stream, &mut out),
                    lse: Some(runtime.view_mut(stream, &mut lse)),
                    workspace: runtime.view_mut(stream, &mut workspace),
                    shape,
                    split,
                    error: None,
                },
            )
            .unwrap();
        let last = (rows - 1) * shape.q_heads;
        let mut lse = bench.host(&lse, rows * shape.q_heads);
        assert!(lse.split_off(last).iter().all(|&x| x == f32::NEG_INFINITY), "the padded row");
        [
            f32s(&bench.host(&qkv, rows * shape.qkv_cols())),
            f32s(&[bench.host(&k, cached), bench.host(&v, cached)].concat()),
            f32s(&bench.host(&out, rows * shape.out_cols())),
            lse,
        ]
    }
}

#[test]
fn agrees_with_the_simt_host() {
    for (head_dim, kv_heads, ratio, page_size, split, head_major) in [
        (64, 1, 3, 16, 64, false),
        (64, 2, 1, 64, 128, true),
        (128, 1, 8, 32, 64, false),
        (128, 2, 2, 128, 512, true),
    ] {
        let shape = AttentionShape { q_heads: kv_heads * ratio, kv_heads, head_dim };
        compare(Attention { shape, page_size, split, head_major }, |expected, found| {
            for (name, (found, expected)) in
                ["qkv", "cache", "out", "lse"].iter().zip(found.iter().zip(expected))
            {
                close(name, found, expected, 1.0 / 64.0);
            }
        });
    }
}
