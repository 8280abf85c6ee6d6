//! Rotary embedding, append to the cache, and joint attention.

use candle_core::Tensor;
use flexdraft::kernels::attention::{DEFAULT_SPLIT, JointAttention as Launch};
use flexdraft::kernels::rope::{NormRopeAppend as Append, RopeTable};
use flexdraft::kernels::{
    KvStrides, PagedKv, PagedKvMut, Paging, PassTables, ScoreChanges as LaunchedChanges,
};
use flexdraft::layout::{AttentionShape, Pass, RowKind, SequenceRows};
use flexdraft_candle::{
    JointAttention, KvCache, MaskProjections, NormRopeAppend, Projections, RotatedProjections, ScoreChanges,
};
use half::{bf16, f16};
use proptest::prelude::*;

use crate::properties::properties;
use crate::support::{Half, Noise, both, same, tensor};

const PAGE_SIZE: usize = 16;

/// Page ids of up to three sequences; no page occurs twice.
const PAGES: [[u32; 4]; 3] = [[3, 1, 11, 6], [5, 0, 2, 10], [8, 4, 9, 7]];

/// Returns a pass of one to three sequences.
pub fn random_pass(noise: &mut Noise) -> Pass<'static> {
    let sequences = (0..1 + noise.below(3)).map(|index| {
        let (start, candidates) = (noise.below(40), noise.below(4));
        let groups: Vec<usize> = (0..candidates.max(1)).filter(|_| noise.below(2) == 0).collect();
        SequenceRows { pages: &PAGES[index], start, candidates, groups, slots: 1 + noise.below(4) }
    });
    Pass { sequences: sequences.collect() }
}

/// Returns a tensor as a cache `[page, token, head, dim]`, which is stored as `[page, head, token, dim]` if `head_major`.
fn cache<T: Half>(values: &[T], shape: AttentionShape, head_major: bool) -> Tensor {
    let AttentionShape { kv_heads, head_dim, .. } = shape;
    let pages = values.len() / PAGE_SIZE / kv_heads / head_dim;
    match head_major {
        false => tensor(values, &[pages, PAGE_SIZE, kv_heads, head_dim]),
        true => tensor(values, &[pages, kv_heads, PAGE_SIZE, head_dim]).transpose(1, 2).unwrap(),
    }
}

/// Returns the elements of a cache in the order of its memory.
fn stored(cache: &Tensor, head_major: bool) -> Tensor {
    if head_major { cache.transpose(1, 2).unwrap() } else { cache.clone() }
}

proptest! {
    #![proptest_config(properties(6))]

    #[test]
    fn rope_append_and_attention(seed: u64, ratio in 1usize..4, kv_heads in 1usize..4, wide: bool, k_major: bool, separate: bool, is_f16: bool) {
        match is_f16 {
            false => rope_append_and_attention_of::<bf16>(seed, ratio, kv_heads, wide, k_major, separate)?,
            true => rope_append_and_attention_of::<f16>(seed, ratio, kv_heads, wide, k_major, separate)?,
        }
    }
}

fn rope_append_and_attention_of<T: Half>(
    seed: u64,
    ratio: usize,
    kv_heads: usize,
    wide: bool,
    k_major: bool,
    separate: bool,
) -> Result<(), TestCaseError> {
    let ((kernels, wrappers), mut noise) = (both(), Noise(seed));
    let (simt, stream) = (wrappers.runtime(), wrappers.runtime().stream());
    let shape = AttentionShape { q_heads: ratio * kv_heads, kv_heads, head_dim: if wide { 128 } else { 64 } };
    let AttentionShape { q_heads, head_dim, .. } = shape;
    let (pass, paging) = (random_pass(&mut noise), Paging { pages: 12, page_size: PAGE_SIZE });
    // Separate tensors have no padding.
    let rows = pass.total_rows() + if separate { 0 } else { noise.below(2) };
    let mut expected_pass = PassTables::new(simt, &stream, 3, 4).unwrap();
    expected_pass.upload(simt, &stream, &pass, paging).unwrap();
    let mut tables = kernels.pass_tables(3, 4).unwrap();
    kernels.upload_pass(&mut tables, &pass, paging).unwrap();
    prop_assert_eq!((tables.rows(), tables.candidates()), (pass.total_rows(), pass.candidate_rows()));

    let inv_freq: Vec<f32> = (0..head_dim / 2).map(|i| 0.9f32.powi(i as i32)).collect();
    let mut cos_sin = vec![7f32; rows * head_dim];
    wrappers
        .rope_table(
            &stream,
            &RopeTable {
                pass: &expected_pass,
                inv_freq: stream.view(&inv_freq),
                scale: 1.5,
                cos_sin: stream.view_mut(&mut cos_sin),
            },
        )
        .unwrap();
    let turns = kernels.rope_table(&tables, &tensor(&inv_freq, &[head_dim / 2]), rows, 1.5).unwrap();
    prop_assert_eq!(turns.dims(), [rows, head_dim / 2, 2]);
    same(&turns, &cos_sin);

    let strides_of = |head_major: bool| match head_major {
        true => KvStrides::head_major(PAGE_SIZE, kv_heads, head_dim),
        false => KvStrides::token_major(PAGE_SIZE, kv_heads, head_dim),
    };
    // The two tensors of a cache may have different layouts.
    let v_major = !k_major;
    let (k_strides, v_strides) = (strides_of(k_major), strides_of(v_major));
    let elements = paging.pages * PAGE_SIZE * kv_heads * head_dim;
    let (mut k, mut v) = (noise.halves::<T>(elements), noise.halves::<T>(elements));
    let (k_cache, v_cache) = (cache(&k, shape, k_major), cache(&v, shape, v_major));
    let kv = KvCache { k: &k_cache, v: &v_cache };
    let mut qkv = noise.halves::<T>(rows * shape.qkv_cols());
    let heads = tensor(&qkv, &[rows, shape.qkv_cols()]);
    let (q_norm, k_norm) = (noise.floats(head_dim), noise.floats(head_dim));
    let norm_tensors = (tensor(&q_norm, &[head_dim]), tensor(&k_norm, &[head_dim]));
    // The heads of some rows, as parts of the rows of `heads`.
    let parts = |heads: &Tensor, kind: RowKind| -> [Tensor; 3] {
        let (first, count) = match kind {
            RowKind::Candidates => (0, pass.candidate_rows()),
            RowKind::Masks => (pass.candidate_rows(), pass.mask_rows()),
        };
        let of_kind = heads.narrow(0, first, count).unwrap();
        let columns = [(0, q_heads), (q_heads, kv_heads), (q_heads + kv_heads, kv_heads)];
        columns.map(|(first, heads)| of_kind.narrow(1, first * head_dim, heads * head_dim).unwrap())
    };
    for kind in [RowKind::Candidates, RowKind::Masks] {
        // Mask rows have no norms here.
        let normed = kind == RowKind::Candidates;
        wrappers
            .norm_rope_append(
                &stream,
                &Append {
                    pass: &expected_pass,
                    kind,
                    qkv: stream.view_mut(&mut qkv).into(),
                    cos_sin: stream.view(&cos_sin),
                    norms: normed.then(|| (stream.view(&q_norm), stream.view(&k_norm))),
                    eps: 1e-5,
                    cache: PagedKvMut {
                        k: stream.view_mut(&mut k),
                        v: stream.view_mut(&mut v),
                        k_strides,
                        v_strides,
                    },
                    shape,
                    error: None,
                },
            )
            .unwrap();
        let append = NormRopeAppend {
            pass: &tables,
            kind,
            qkv: RotatedProjections::Fused(&heads),
            cos_sin: &turns,
            norms: normed.then_some((&norm_tensors.0, &norm_tensors.1)),
            eps: 1e-5,
            cache: kv,
            q_heads,
        };
        if separate {
            let [q, k, v] = parts(&heads, kind);
            let qkv = RotatedProjections::Separate { q: &q, k: &k, v: &v };
            kernels.norm_rope_append(&NormRopeAppend { qkv, ..append }).unwrap();
        } else {
            kernels.norm_rope_append(&append).unwrap();
        }
    }
    same(&heads, &qkv);
    same(&stored(&k_cache, k_major), &k);
    same(&stored(&v_cache, v_major), &v);

    let sinks = noise.floats(q_heads);
    let sink_tensor = tensor(&sinks, &[q_heads]);
    let [[q, _, _], [mask_q, mask_k, mask_v]] =
        [RowKind::Candidates, RowKind::Masks].map(|kind| parts(&heads, kind));
    for (masks, changed) in [(true, false), (false, false), (true, true)] {
        let rows = if separate && !masks { pass.candidate_rows() } else { rows };
        let len =
            wrappers.attention_workspace_len(&expected_pass, masks, rows, shape, DEFAULT_SPLIT).unwrap();
        let mut workspace = vec![0u64; len.div_ceil(2)];
        let (mut out, mut lse) =
            (vec![T::from_f64(1.0); rows * shape.out_cols()], vec![1f32; rows * q_heads]);
        let (window, soft_cap) = (changed.then_some(65), changed.then_some(20.0));
        wrappers
            .joint_attention(
                &stream,
                &Launch {
                    pass: &expected_pass,
                    masks,
                    qkv: stream.view(&qkv[..rows * shape.qkv_cols()]).into(),
                    cache: PagedKv { k: stream.view(&k), v: stream.view(&v), k_strides, v_strides },
                    out: stream.view_mut(&mut out),
                    lse: Some(stream.view_mut(&mut lse)),
                    workspace: stream.view_mut(bytemuck::cast_slice_mut(&mut workspace)),
                    shape,
                    split: DEFAULT_SPLIT,
                    scores: LaunchedChanges { window, soft_cap, sinks: changed.then(|| stream.view(&sinks)) },
                    error: None,
                },
            )
            .unwrap();
        let of_masks = MaskProjections { q: &mask_q, k: &mask_k, v: &mask_v };
        let found = kernels
            .joint_attention(&JointAttention {
                pass: &tables,
                masks,
                qkv: match separate {
                    true => Projections::Separate { q: &q, masks: masks.then_some(of_masks) },
                    false => Projections::Fused(&heads),
                },
                cache: kv,
                q_heads,
                split: None,
                scores: ScoreChanges { window, soft_cap, sinks: changed.then_some(&sink_tensor) },
            })
            .unwrap();
        same(&found.out, &out);
        same(&found.lse, &lse);
    }
    prop_assert_eq!(kernels.take_faults().unwrap(), None);
    Ok(())
}
