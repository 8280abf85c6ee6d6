//! Tests that attention operands that do not match give a typed error, and that no kernel is launched.

use flexdraft::kernels::attention::{JointAttention, attention_workspace_len};
use flexdraft::kernels::{KvStrides, PagedKv, Paging, PassTables, ScoreChanges};
use flexdraft::layout::{AttentionShape, Pass, SequenceRows};
use flexdraft::runtime::SimtOptions;
use half::bf16;

use crate::processors::{Bench, processors};
use crate::rows::POISON as NAN;

#[test]
fn what_does_not_fit() {
    for processor in processors() {
        refuses_what_does_not_fit(&Bench::on(processor, SimtOptions::default()));
    }
}

fn refuses_what_does_not_fit(bench: &Bench) {
    let Bench { kernels, stream } = bench;
    let mut tables = PassTables::new(bench.runtime(), stream, 1, 2).unwrap();
    let rows = SequenceRows { pages: &[1, 0], start: 20, candidates: 2, groups: vec![1], slots: 3 };
    let paging = Paging { pages: 2, page_size: 16 };
    tables.upload(bench.runtime(), stream, &Pass { sequences: vec![rows] }, paging).unwrap();
    let sound = AttentionShape { q_heads: 2, kv_heads: 1, head_dim: 64 };
    let strides = KvStrides::token_major(16, 1, 64);
    let message = |shape: AttentionShape, lens: [usize; 5], strides: KvStrides, split: usize| {
        let [qkv, cache, out, lse, workspace] = lens;
        let (qkv, cache) = (bench.memory(&vec![bf16::ONE; qkv]), bench.memory(&vec![bf16::ONE; cache]));
        let (mut out, mut lse) = (bench.memory(&vec![NAN; out]), bench.memory(&vec![f32::NAN; lse]));
        let mut workspace = bench.memory(&vec![0f32; workspace]);
        let args = JointAttention {
            pass: &tables,
            masks: true,
            qkv: bench.view(&qkv).into(),
            cache: PagedKv {
                k: bench.view(&cache),
                v: bench.view(&cache),
                k_strides: strides,
                v_strides: strides,
            },
            out: bench.view_mut(&mut out),
            lse: Some(bench.view_mut(&mut lse)),
            workspace: bench.view_mut(&mut workspace),
            shape,
            split,
            scores: ScoreChanges::default(),
            error: None,
        };
        let result = kernels.joint_attention(stream, &args);
        drop(args);
        let launched = bench.host(&out).iter().any(|x| x.to_bits() != NAN.to_bits());
        assert_eq!(launched, result.is_ok(), "launched");
        result.map_or_else(|error| error.to_string(), |()| "no error".into())
    };
    let needed = attention_workspace_len(sound, 5, 22, 64).unwrap();
    let lens = [5 * 256, 2 * 16 * 64, 5 * 128, 5 * 2, needed];
    assert_eq!(message(sound, lens, strides, 64), "no error");
    let with = |i: usize, len: usize| {
        let mut lens = lens;
        lens[i] = len;
        message(sound, lens, strides, 64)
    };
    let kernel = "joint_attention_d64_r64_s3";
    for (i, operand, len) in [(0, "qkv", lens[0]), (2, "out", lens[2]), (3, "lse", lens[3])] {
        let expected =
            |found| format!("{kernel}: operand `{operand}` has {found} elements, expected {len}");
        assert_eq!(with(i, len - 1), expected(len - 1));
        assert_eq!(with(i, 0), expected(0));
    }
    for (i, operand) in [(1, "k cache"), (4, "workspace")] {
        let (found, len) = (lens[i] - 1, lens[i]);
        let expected = format!("{kernel}: operand `{operand}` has {found} elements, expected {len}");
        assert_eq!(with(i, found), expected);
    }
    for (split, expected) in [(0, "split is 0"), (32, "split is 32"), (96, "split is 96")] {
        assert_eq!(
            message(sound, lens, strides, split),
            format!("{kernel}: {expected}; supported: multiples of 64")
        );
    }
    let shape = |q_heads, kv_heads, head_dim| {
        message(AttentionShape { q_heads, kv_heads, head_dim }, lens, strides, 64)
    };
    assert_eq!(shape(2, 1, 96), "joint_attention: head_dim is 96; supported: 64, 128");
    for (q_heads, kv_heads) in [(3, 2), (17, 1), (0, 1), (1, 0)] {
        let error = shape(q_heads, kv_heads, 64);
        assert!(
            error.ends_with(&format!("query heads is {q_heads}; supported: 1 to 16 for each KV head")),
            "{error}"
        );
    }
    let odd = KvStrides { token: 63, ..strides };
    let error = message(sound, lens, odd, 64);
    assert_eq!(error, format!("{kernel}: a stride of the cache is 63; supported: multiples of 8 elements"));
}
