//! Tensors that a kernel cannot take are refused by candle errors that name them, and nothing changes.

use candle_core::{DType, Device, Tensor};
use flexdraft::kernels::sampling::{RowSampling, RowStats};
use flexdraft::kernels::{KernelError, Paging};
use flexdraft::layout::{Pass, RowKind, SequenceRows};
use flexdraft::sampling::SamplingParams;
use flexdraft_candle::{
    Accept, Calibration, ChainChoose, Error, JointAttention, Kernels, KvCache, NormRopeAppend, PassTables,
    Projections, RotatedProjections, Sample, SampledLogits, ScoreChanges, read_table, table,
};
use half::bf16;

use crate::support::tensor;

fn zeros(shape: &[usize], dtype: DType) -> Tensor {
    Tensor::zeros(shape, dtype, &Device::Cpu).unwrap()
}

fn kernels() -> Kernels {
    Kernels::new(&Device::Cpu).unwrap()
}

/// Returns the error of this crate, and checks that candle's error has its text.
fn refused<T: std::fmt::Debug>(result: candle_core::Result<T>) -> Error {
    let error = result.unwrap_err();
    let found = Error::of(&error).unwrap_or_else(|| panic!("{error}")).clone();
    assert!(error.to_string().contains(&found.to_string()), "{error}");
    found
}

/// Returns the kernel, the operand and the text of a refusal.
fn text<T: std::fmt::Debug>(result: candle_core::Result<T>) -> String {
    refused(result).to_string()
}

#[test]
fn types() {
    let kernels = kernels();
    let (x, weight) = (zeros(&[2, 16], DType::BF16), zeros(&[16], DType::F32));
    let cases = [
        (
            text(kernels.rms_norm(&zeros(&[2, 16], DType::F32), &weight, 1e-6)),
            "rms_norm: operand `x` has elements of F32, expected BF16 or F16",
        ),
        (
            text(kernels.rms_norm(&x, &zeros(&[16], DType::BF16), 1e-6)),
            "rms_norm: operand `weight` has elements of BF16, expected F32",
        ),
        (
            text(kernels.gather(&zeros(&[2], DType::I64), &x)),
            "gather: operand `indices` has elements of I64, expected I32 or U32",
        ),
        (
            text(kernels.add(&x, &zeros(&[2, 16], DType::F16))),
            "add: operand `delta` has elements of F16, expected BF16",
        ),
        (
            text(read_table::<RowStats>(&zeros(&[2, 12], DType::U32))),
            "read_table: operand `RowStats` has elements of U32, expected I32",
        ),
    ];
    for (found, expected) in cases {
        assert_eq!(found, expected);
    }
}

#[test]
fn shapes() {
    let kernels = kernels();
    let (x, weight) = (zeros(&[2, 16], DType::BF16), zeros(&[16], DType::F32));
    let cases = [
        (
            text(kernels.rms_norm(&zeros(&[32], DType::BF16), &weight, 1e-6)),
            "rms_norm: operand `x` has the shape [32], expected [any, any]",
        ),
        (
            text(kernels.rms_norm(&x, &zeros(&[8], DType::F32), 1e-6)),
            "rms_norm: operand `weight` has the shape [8], expected [16]",
        ),
        (
            text(kernels.add(&x, &zeros(&[3, 16], DType::BF16))),
            "add: operand `delta` has the shape [3, 16], expected [2, 16]",
        ),
        (
            text(kernels.select_drafts(&zeros(&[1, 3], DType::I64), &zeros(&[1, 4], DType::I64), 1)),
            "select_drafts: operand `drafts` has the shape [1, 3], expected [any, 4]",
        ),
        (
            text(read_table::<RowSampling>(&zeros(&[2, 4], DType::I64))),
            "read_table: operand `RowSampling` has the shape [2, 4], expected [any, 5]",
        ),
        // The kernels' own checks.
        (
            text(kernels.silu_mul(&zeros(&[2, 24], DType::BF16))),
            "silu_mul: number of columns is 12; supported: multiples of 8",
        ),
        (
            text(kernels.silu_mul(&zeros(&[2, 17], DType::BF16))),
            "silu_mul: operand `x` has 34 elements, expected 32",
        ),
    ];
    for (found, expected) in cases {
        assert_eq!(found, expected);
    }
}

#[test]
fn layouts() {
    let kernels = kernels();
    let (ids, wide) = (tensor(&[0i32], &[1]), zeros(&[16, 16], DType::BF16));
    let strided = text(kernels.embed(&ids, &wide.t().unwrap()));
    assert_eq!(strided, "embed: operand `table` has the strides [1, 16], expected a contiguous tensor");
    let repeated = zeros(&[1, 16], DType::BF16).broadcast_as((2, 16)).unwrap();
    let repeated = text(kernels.add(&repeated, &zeros(&[2, 16], DType::BF16)));
    assert_eq!(repeated, "add: operand `x` has the strides [0, 1], expected a contiguous tensor");
    // Rows of a narrower part begin at any element, and the kernel's loads need 16 bytes.
    let shifted = zeros(&[33], DType::BF16).narrow(0, 1, 32).unwrap().reshape((2, 16)).unwrap();
    let shifted = refused(kernels.silu_mul(&shifted));
    assert!(matches!(shifted, Error::Kernel(KernelError::Alignment { operand: "x", .. })), "{shifted}");
    // Candle can make a tensor whose shape exceeds its storage.
    let storage = candle_core::Storage::Cpu(candle_core::CpuStorage::BF16(vec![bf16::ONE; 16]));
    let beyond = Tensor::from((storage, (4, 16)));
    let beyond = text(kernels.silu_mul(&beyond));
    assert_eq!(beyond, "silu_mul: operand `x` ends at element 64 of a storage with 16 elements");
}

fn tables(kernels: &Kernels) -> PassTables {
    let mut tables = kernels.pass_tables(1, 1).unwrap();
    let sequence = SequenceRows { pages: &[0], start: 3, candidates: 1, groups: vec![], slots: 0 };
    let pass = Pass { sequences: vec![sequence] };
    kernels.upload_pass(&mut tables, &pass, Paging { pages: 1, page_size: 16 }).unwrap();
    tables
}

#[test]
fn passes_and_caches() {
    let kernels = kernels();
    let tables = tables(&kernels);
    let cache = zeros(&[1, 16, 1, 64], DType::BF16);
    let (k, v) = (cache.copy().unwrap(), cache.copy().unwrap());
    let (k_cache, v_cache) = (k.clone(), v.clone());
    let qkv = zeros(&[1, 3 * 64], DType::BF16);
    let args = JointAttention {
        pass: &tables,
        masks: true,
        qkv: Projections::Fused(&qkv),
        cache: KvCache { k: &k, v: &v },
        q_heads: 1,
        split: None,
        scores: ScoreChanges::default(),
    };
    kernels.joint_attention(&args).unwrap();
    let wrong = JointAttention { cache: KvCache { k: &k, v: &zeros(&[1, 16, 2, 64], DType::BF16) }, ..args };
    // The cache's type is the type of all rows.
    let [f16, f32] = [DType::F16, DType::F32].map(|dtype| zeros(&[1, 16, 1, 64], dtype));
    let of_caches = |k, v| text(kernels.joint_attention(&JointAttention { cache: KvCache { k, v }, ..args }));
    let cases = [
        (of_caches(&f16, &f16), "joint_attention: operand `qkv` has elements of BF16, expected F16"),
        (of_caches(&k, &f16), "joint_attention: operand `v cache` has elements of F16, expected BF16"),
        (
            of_caches(&f32, &f32),
            "joint_attention: operand `k cache` has elements of F32, expected BF16 or F16",
        ),
        (
            text(kernels.joint_attention(&wrong)),
            "joint_attention: operand `v cache` has the shape [1, 16, 2, 64], expected [1, 16, 1, 64]",
        ),
        (
            text(kernels.joint_attention(&JointAttention { q_heads: 2, ..args })),
            "joint_attention: operand `qkv` has the shape [1, 192], expected [any, 256]",
        ),
        (
            text(kernels.joint_attention(&JointAttention { split: Some(3), ..args })),
            "joint_attention_d64_r64_s3: split is 3; supported: multiples of 64",
        ),
        (
            text(kernels.rope_table(&tables, &zeros(&[32], DType::F32), usize::MAX, 1.0)),
            "rope_table: the size or index `cos_sin` is too large for its integer type",
        ),
    ];
    for (found, expected) in cases {
        assert_eq!(found, expected);
    }
    let crossed = zeros(&[1, 16, 64, 2], DType::BF16).transpose(2, 3).unwrap();
    let wide = zeros(&[1, 6 * 64], DType::BF16);
    let crossed = JointAttention {
        cache: KvCache { k: &crossed, v: &crossed },
        q_heads: 2,
        qkv: Projections::Fused(&wide),
        ..args
    };
    let expected = "joint_attention: operand `k cache` has the strides [2048, 128, 1, 2], expected adjacent elements \
                    within a head";
    assert_eq!(text(kernels.joint_attention(&crossed)), expected);

    // Reading one tensor as k and v is possible, writing it is not.
    kernels.joint_attention(&JointAttention { cache: KvCache { k: &k, v: &k }, ..args }).unwrap();
    let append = NormRopeAppend {
        pass: &tables,
        kind: RowKind::Candidates,
        qkv: RotatedProjections::Fused(&qkv),
        cos_sin: &zeros(&[1, 32, 2], DType::F32),
        norms: None,
        eps: 1e-6,
        cache: KvCache { k: &k, v: &k },
        q_heads: 1,
    };
    let expected = "norm_rope_append: operands `k cache` and `v cache` share memory that the kernel writes";
    assert_eq!(text(kernels.norm_rope_append(&append)), expected);
    let append_to_f32 = NormRopeAppend { cache: KvCache { k: &f32, v: &f32 }, ..append };
    let expected = "norm_rope_append: operand `k cache` has elements of F32, expected BF16 or F16";
    assert_eq!(text(kernels.norm_rope_append(&append_to_f32)), expected);

    // Columns of the same rows are apart; columns that overlap are not.
    let columns = |first: usize| qkv.narrow(1, first, 64).unwrap();
    let (q, k, v, between) = (columns(0), columns(64), columns(128), columns(32));
    let other = KvCache { k: &k_cache, v: &v_cache };
    let separate =
        |k| NormRopeAppend { qkv: RotatedProjections::Separate { q: &q, k, v: &v }, cache: other, ..append };
    kernels.norm_rope_append(&separate(&k)).unwrap();
    let expected = "norm_rope_append: operands `q` and `k` share memory that the kernel writes";
    assert_eq!(text(kernels.norm_rope_append(&separate(&between))), expected);
    let apart = zeros(&[1, 128], DType::BF16)
        .reshape((1, 64, 2))
        .unwrap()
        .narrow(2, 0, 1)
        .unwrap()
        .squeeze(2)
        .unwrap();
    let expected = "norm_rope_append: operand `k` has the strides [128, 2], expected rows of adjacent elements that do \
                    not overlap";
    assert_eq!(text(kernels.norm_rope_append(&separate(&apart))), expected);

    let sequence = SequenceRows { pages: &[1], start: 3, candidates: 1, groups: vec![], slots: 0 };
    let pass = Pass { sequences: vec![sequence] };
    let mut other = kernels.pass_tables(1, 1).unwrap();
    let found = refused(kernels.upload_pass(&mut other, &pass, Paging { pages: 1, page_size: 16 }));
    assert_eq!(found, Error::Kernel(KernelError::PageId { sequence: 0, page: 1, pages: 1 }));
}

#[test]
fn sampling_and_chains() {
    let kernels = kernels();
    let logits = zeros(&[1, 56], DType::F32);
    let greedy = [RowSampling::new(&SamplingParams::GREEDY, None).unwrap()];
    let sampling = table(&greedy, &Device::Cpu).unwrap();
    let args = Sample {
        vocab: 50,
        logits: SampledLogits::Read(&logits),
        logit_index: None,
        sampling: &sampling,
        starts: None,
        draft: None,
        calibration: None,
    };
    let partials = kernels.sample_partials(&args).unwrap();
    let choose = ChainChoose {
        vocab: 50,
        logits: &logits,
        logit_index: None,
        partials: &partials,
        calibrated: false,
        count: usize::MAX,
    };
    let stats = zeros(&[1, 12], DType::I32);
    let accept = Accept {
        vocab: usize::MAX,
        sequences: &zeros(&[1, 6], DType::I64),
        any_block: false,
        tokens: &zeros(&[0], DType::I32),
        target: &logits,
        target_stats: &stats,
        target_partials: None,
        draft: None,
    };
    let calibrated = |logits: DType, hidden: DType, weight: DType| {
        let (hidden, weight) = (zeros(&[1, 8], hidden), zeros(&[50, 8], weight));
        let logits = zeros(&[1, 56], logits);
        let logits = SampledLogits::Read(&logits);
        let calibration = Some(Calibration { hidden: &hidden, weight: &weight, bias: None });
        text(kernels.sample(&Sample { logits, calibration, ..args }))
    };
    let cases = [
        (
            text(kernels.sample(&Sample { vocab: usize::MAX, ..args })),
            "sample: vocabulary is 9223372036854775807; supported: 1 to 2^20",
        ),
        (
            text(kernels.sample(&Sample { draft: Some(&zeros(&[2], DType::I32)), ..args })),
            "sample: operand `draft` has the shape [2], expected [1]",
        ),
        (
            text(
                kernels.sample(&Sample { logits: SampledLogits::Read(&zeros(&[1, 56], DType::F64)), ..args }),
            ),
            "sample: operand `logits` has elements of F64, expected F32, BF16 or F16",
        ),
        (
            calibrated(DType::F32, DType::F16, DType::BF16),
            "sample: operand `weight` has elements of BF16, expected F16",
        ),
        (
            calibrated(DType::BF16, DType::F16, DType::F16),
            "sample: operand `hidden` has elements of F16, expected BF16",
        ),
        (
            text(kernels.chain_choose(&choose)),
            "chain_choose_f32: number of chosen ids is 9223372036854775807; supported: 1 to 32",
        ),
        (
            text(kernels.accept(&accept)),
            "accept_f32: vocabulary is 9223372036854775807; supported: 1 to 2^20",
        ),
    ];
    for (found, expected) in cases {
        assert_eq!(found, expected);
    }
}

#[cfg(not(feature = "cuda"))]
#[test]
fn devices_and_other_errors() {
    let error = Kernels::new(&Device::Cuda(candle_core::CudaDevice)).unwrap_err();
    let expected =
        "flexdraft's kernels do not run on CUDA, expected the CPU, or a CUDA device and the feature `cuda`";
    assert_eq!(Error::of(&error), Some(&Error::Unavailable("CUDA")));
    assert!(error.to_string().contains(expected), "{error}");
    assert!(matches!(Error::of(&error.context("in a model")), Some(Error::Unavailable(_))));
    assert_eq!(Error::of(&candle_core::Error::Msg("another".into())), None);
}
