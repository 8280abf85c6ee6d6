//! Rotary embedding, append to the cache, and attention.

use std::ptr;

use flexdraft::kernels::{KvStrides, PagedKv, PagedKvMut, Paging, PassTables, ScoreChanges, attention, rope};
use flexdraft::layout::{AttentionShape, Pass, RowKind, SequenceRows};
use flexdraft_ffi::*;
use half::{bf16, f16};

use super::{STREAM, bits, simt};
use crate::support::{
    ABSENT, Half, NO_ROWS, Noise, Opened, attempt, columns, read, sequence, versioned, write,
};

#[test]
fn rope_append_and_attention() {
    rope_append_and_attention_of::<bf16>();
    rope_append_and_attention_of::<f16>();
}

fn rope_append_and_attention_of<T: Half>() {
    let (opened, kernels) = (Opened::new(), simt());
    let (runtime, stream) = (kernels.runtime(), kernels.runtime().stream());
    let mut noise = Noise(2);
    for head_major in [false, true] {
        let shape = AttentionShape {
            q_heads: 4,
            kv_heads: [1, 2][noise.below(2)],
            head_dim: [64, 128][noise.below(2)],
        };
        let (kv_heads, head_dim, page_size, pages) = (shape.kv_heads, shape.head_dim, 16, 6);
        let tables = [vec![3u32, 1], vec![5, 0, 2]];
        // The second sequence has no mask group.
        let sizes = [(noise.below(20), 3, 0b101u64, 4), (33 + noise.below(10), 2, 0, 0)];
        let groups = |bits: u64| (0..64).filter(|k| bits >> k & 1 == 1).collect::<Vec<usize>>();
        let rows_of = |i: usize| {
            let (start, candidates, bits, slots) = sizes[i];
            SequenceRows { pages: &tables[i], start, candidates, groups: groups(bits), slots }
        };
        let pass = Pass { sequences: vec![rows_of(0), rows_of(1)] };
        let rows = pass.total_rows() + 1; // one padding row
        let mut device = PassTables::new(runtime, &stream, 2, 3).unwrap();
        device.upload(runtime, &stream, &pass, Paging { pages, page_size }).unwrap();
        let sequence_of = |i: usize| {
            let (start, candidates, bits, slots) = sizes[i];
            sequence(&tables[i], start as u64, candidates as u64, bits, slots as u64)
        };
        let opened_pass = opened.pass(&[sequence_of(0), sequence_of(1)], pages as u64, page_size as u64);

        let inv_freq: Vec<f32> = (0..head_dim / 2).map(|i| 0.9f32.powi(i as i32)).collect();
        let (mut cos_sin, mut found_cos_sin) = (vec![7f32; rows * head_dim], vec![7f32; rows * head_dim]);
        kernels
            .rope_table(
                &stream,
                &rope::RopeTable {
                    pass: &device,
                    inv_freq: stream.view(&inv_freq),
                    scale: 1.0,
                    cos_sin: stream.view_mut(&mut cos_sin),
                },
            )
            .unwrap();
        launch!(
            opened,
            flexdraft_rope_table,
            versioned!(FlexdraftRopeTable {
                pass: opened_pass.0,
                inv_freq: read(&inv_freq),
                cos_sin: write(&mut found_cos_sin),
                scale: 1.0,
                ..
            })
        );
        assert_eq!(bits(&found_cos_sin), bits(&cos_sin));

        let strides = match head_major {
            true => KvStrides::head_major(page_size, kv_heads, head_dim),
            false => KvStrides::token_major(page_size, kv_heads, head_dim),
        };
        let heads = FlexdraftHeads { q_heads: 4, kv_heads: kv_heads as u64, head_dim: head_dim as u64 };
        let cache = |k, v| FlexdraftCache {
            k,
            v,
            k_page_stride: strides.page as u64,
            k_token_stride: strides.token as u64,
            k_head_stride: strides.head as u64,
            v_page_stride: strides.page as u64,
            v_token_stride: strides.token as u64,
            v_head_stride: strides.head as u64,
        };
        let cached = pages * page_size * kv_heads * head_dim;
        let (mut k, mut v) = (noise.rounded::<T>(cached), noise.rounded::<T>(cached));
        let (mut found_k, mut found_v) = (k.clone(), v.clone());
        // Through the C interface, q, k and v are one tensor, or three tensors that are columns of one.
        let separate = head_major;
        let (width, k_column) = (shape.qkv_cols(), shape.out_cols());
        let v_column = k_column + kv_heads * head_dim;
        let mut qkv = noise.rounded::<T>(rows * width);
        let mut found_qkv = qkv.clone();
        let (q_norm, k_norm) = (noise.floats(head_dim), noise.floats(head_dim));
        for (kind, number) in [(RowKind::Candidates, FLEXDRAFT_CANDIDATES), (RowKind::Masks, FLEXDRAFT_MASKS)]
        {
            // Mask rows have no norms here.
            let norms = kind == RowKind::Candidates;
            let first = if kind == RowKind::Candidates { 0 } else { device.candidates() };
            let fused = write(&mut found_qkv);
            let part = |column| if separate { columns(fused, width, first, column) } else { NO_ROWS };
            kernels
                .norm_rope_append(
                    &stream,
                    &rope::NormRopeAppend {
                        pass: &device,
                        kind,
                        qkv: stream.view_mut(&mut qkv).into(),
                        cos_sin: stream.view(&cos_sin),
                        norms: norms.then(|| (stream.view(&q_norm), stream.view(&k_norm))),
                        eps: 1e-5,
                        cache: PagedKvMut {
                            k: stream.view_mut(&mut k),
                            v: stream.view_mut(&mut v),
                            k_strides: strides,
                            v_strides: strides,
                        },
                        shape,
                        error: None,
                    },
                )
                .unwrap();
            launch!(
                opened,
                flexdraft_norm_rope_append,
                versioned!(FlexdraftNormRopeAppend {
                    pass: opened_pass.0,
                    heads,
                    qkv: if separate { ABSENT } else { fused },
                    cos_sin: read(&found_cos_sin),
                    q_norm: if norms { read(&q_norm) } else { ABSENT },
                    k_norm: if norms { read(&k_norm) } else { ABSENT },
                    cache: cache(write(&mut found_k), write(&mut found_v)),
                    eps: 1e-5,
                    kind: number,
                    q: part(0),
                    k: part(k_column),
                    v: part(v_column),
                    ..
                })
            );
        }
        assert_eq!((bits(&found_qkv), bits(&found_k), bits(&found_v)), (bits(&qkv), bits(&k), bits(&v)));

        for masks in [true, false] {
            let needed =
                kernels.attention_workspace_len(&device, masks, rows, shape, attention::DEFAULT_SPLIT);
            let mut found_needed = 0;
            let asked = versioned!(FlexdraftAttentionSize {
                pass: opened_pass.0,
                heads,
                rows: rows as u64,
                longest: 0,
                split: 0,
                with_masks: u32::from(masks),
                ..
            });
            let bound = FlexdraftAttentionSize { pass: ptr::null(), longest: 43, ..asked };
            let mut len = |asked: FlexdraftAttentionSize| {
                // SAFETY: the kernels and the pass are open, and the pointers lead to variables.
                attempt(|error| unsafe {
                    flexdraft_attention_workspace_len(
                        opened.0,
                        &raw const asked,
                        &raw mut found_needed,
                        error,
                    )
                })
                .unwrap();
                found_needed as usize
            };
            assert_eq!(Some(len(asked)), needed);
            assert!(len(bound) >= needed.unwrap());
            let mut workspace = vec![0u64; len(asked).div_ceil(2)];
            let workspace: &mut [f32] = bytemuck::cast_slice_mut(&mut workspace);
            let fused = read(&found_qkv);
            let sinks = noise.floats(4);
            let of_masks = |column| match separate && masks {
                true => columns(fused, width, device.candidates(), column),
                false => NO_ROWS,
            };
            let outs = || (vec![T::ONE; rows * shape.out_cols()], vec![1f32; rows * 4]);
            let ((mut out, mut lse), (mut found_out, mut found_lse)) = (outs(), outs());
            kernels
                .joint_attention(
                    &stream,
                    &attention::JointAttention {
                        pass: &device,
                        masks,
                        qkv: stream.view(&qkv).into(),
                        cache: PagedKv {
                            k: stream.view(&k),
                            v: stream.view(&v),
                            k_strides: strides,
                            v_strides: strides,
                        },
                        out: stream.view_mut(&mut out),
                        lse: Some(stream.view_mut(&mut lse)),
                        workspace: stream.view_mut(workspace),
                        shape,
                        split: attention::DEFAULT_SPLIT,
                        scores: ScoreChanges {
                            window: masks.then_some(65),
                            soft_cap: masks.then_some(2.0),
                            sinks: masks.then(|| stream.view(&sinks)),
                        },
                        error: None,
                    },
                )
                .unwrap();
            launch!(
                opened,
                flexdraft_joint_attention,
                versioned!(FlexdraftJointAttention {
                    pass: opened_pass.0,
                    heads,
                    qkv: if separate { ABSENT } else { fused },
                    cache: cache(read(&found_k), read(&found_v)),
                    out: write(&mut found_out),
                    lse: write(&mut found_lse),
                    workspace: write(workspace),
                    split: 0,
                    with_masks: u32::from(masks),
                    q: if separate { columns(fused, width, 0, 0) } else { NO_ROWS },
                    mask_q: of_masks(0),
                    mask_k: of_masks(k_column),
                    mask_v: of_masks(v_column),
                    sinks: if masks { read(&sinks) } else { ABSENT },
                    window: if masks { 65 } else { 0 },
                    soft_cap: if masks { 2.0 } else { 0.0 },
                    ..
                })
            );
            assert_eq!((bits(&found_out), bits(&found_lse)), (bits(&out), bits(&lse)));
            assert!(out[..4].iter().any(|&value| value != T::ZERO));
        }
    }
}
