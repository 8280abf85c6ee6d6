//! Tests that joint attention refuses operands that do not fit, with the checks that it shares with the append to the
//! cache.

use flexdraft::kernels::attention::{JointAttention, attention_workspace_len};
use flexdraft::kernels::{
    HeadRows, KernelError, KvStrides, MaskProjections, PagedKv, Projections, ScoreChanges,
};
use flexdraft::layout::AttentionShape;
use flexdraft::runtime::Limits;
use half::bf16;

use super::memory::Memory;
use super::pass::{PAGE_SIZE, PAGES, ROWS, SEEN, tables, tables_of_length};
use super::{Host, Launch, length, measured, operands_are_checked, refused, taken, unsupported};

/// Operands of joint attention over the rows of the pass in `pass.rs`.
struct Attention {
    shape: AttentionShape,
    qkv: Memory,
    k: Memory,
    v: Memory,
    strides: KvStrides,
    out: Memory,
    lse: Memory,
    workspace: Memory,
    split: usize,
    error: Memory,
    /// The length of the only sequence (`None` for the pass in `pass.rs`), and the shared memory that a CTA may take
    /// (`None` for the usual limits).
    length: Option<usize>,
    shared_bytes: Option<u32>,
    /// The tensors of q, mask q, mask k and mask v in place of `qkv`, with the distance of their rows.
    separate: Option<([Memory; 4], usize)>,
    /// True if the mask rows have tensors.
    has_masks: bool,
    window: Option<usize>,
    soft_cap: Option<f32>,
    sinks: Memory,
}

fn attention() -> Attention {
    let cached = || Memory::zeros::<bf16>(PAGES * PAGE_SIZE * 2 * 64);
    let shape = AttentionShape { q_heads: 4, kv_heads: 2, head_dim: 64 };
    Attention {
        shape,
        qkv: Memory::zeros::<bf16>(ROWS * 8 * 64),
        k: cached(),
        v: cached(),
        strides: KvStrides::token_major(PAGE_SIZE, 2, 64),
        out: Memory::zeros::<bf16>(ROWS * 4 * 64),
        lse: Memory::zeros::<f32>(ROWS * 4),
        workspace: Memory::zeros::<f32>(attention_workspace_len(shape, ROWS, SEEN, 64).unwrap()),
        split: 64,
        error: Memory::zeros::<u32>(1),
        length: None,
        shared_bytes: None,
        separate: None,
        has_masks: true,
        window: Some(65),
        soft_cap: Some(1.0),
        sinks: Memory::zeros::<f32>(4),
    }
}

/// Returns the operands with four candidates' q and four mask rows' q, k and v in separate tensors, whose rows have the
/// distance of q's.
fn separate() -> Attention {
    let rows = |elements: usize| Memory::zeros::<bf16>(3 * 4 * 64 + elements);
    let parts = [rows(4 * 64), rows(4 * 64), rows(2 * 64), rows(2 * 64)];
    Attention { separate: Some((parts, 4 * 64)), ..attention() }
}

impl Launch for Attention {
    fn launch(&mut self, host: &Host) -> Result<(), KernelError> {
        let pass = &self.length.map_or_else(|| tables(host), |length| tables_of_length(host, length));
        let qkv = match &self.separate {
            None => self.qkv.view::<bf16>(host).into(),
            Some((parts, stride)) => {
                let [q, mask_q, mask_k, mask_v] =
                    parts.each_ref().map(|memory| HeadRows { view: memory.view(host), stride: *stride });
                let masks = MaskProjections { q: mask_q, k: mask_k, v: mask_v };
                Projections::Separate { q, masks: self.has_masks.then_some(masks) }
            }
        };
        let args = JointAttention {
            pass,
            masks: true,
            qkv,
            cache: PagedKv {
                k: self.k.view(host),
                v: self.v.view(host),
                k_strides: self.strides,
                v_strides: self.strides,
            },
            out: self.out.view_mut(host),
            lse: Some(self.lse.view_mut(host)),
            workspace: self.workspace.view_mut(host),
            shape: self.shape,
            split: self.split,
            scores: ScoreChanges {
                window: self.window,
                soft_cap: self.soft_cap,
                sinks: Some(self.sinks.view(host)),
            },
            error: Some(self.error.view_mut(host)),
        };
        host.kernels.joint_attention(&host.stream, &args)
    }

    fn limits(&self) -> Option<Limits> {
        self.shared_bytes.map(|bytes| Limits {
            multiprocessors: 4,
            shared_bytes_per_cta: bytes,
            shared_bytes_per_multiprocessor: bytes,
        })
    }
}

const KERNEL: &str = "joint_attention_d64_r64_s3";

#[test]
fn joint_attention() {
    taken(attention);
    operands_are_checked(
        attention,
        KERNEL,
        &[
            measured("qkv", 16, |k: &mut Attention| &mut k.qkv),
            measured("k cache", 16, |k| &mut k.k),
            measured("v cache", 16, |k| &mut k.v),
            measured("out", 16, |k| &mut k.out),
            measured("lse", 4, |k| &mut k.lse),
            measured("workspace", 8, |k| &mut k.workspace),
            measured("error word", 4, |k| &mut k.error),
            measured("sinks", 4, |k| &mut k.sinks),
        ],
    );
    refused(attention, |k| k.window = Some(64), unsupported(KERNEL, "sliding window", 64, "65 and more"));
    for (cap, found) in [(0.0, 0), (-1.0, -1), (1001.0, 1001), (f32::NAN, 0), (f32::INFINITY, i64::MAX)] {
        let expected = unsupported(KERNEL, "soft cap", found, "1 to 1000");
        refused(attention, |k| k.soft_cap = Some(cap), expected);
    }
    // With 17 query heads per KV head the method picks the kernel with tiles of 128 rows; no kernel has head_dim 96.
    let kernels = [KERNEL, "joint_attention_d64_r128_s3", "joint_attention"];
    heads_are_checked(attention, |k| &mut k.shape, kernels);
    strides_are_checked(attention, |k| &mut k.strides, KERNEL);
    for split in [0, 100] {
        refused(
            attention,
            |k| k.split = split,
            unsupported(KERNEL, "split", split as i64, "multiples of 64"),
        );
    }
    let most = 4 * 4095;
    let expected = unsupported(KERNEL, "number of splits", most + 1, "up to 16380");
    refused(attention, |k| k.length = Some(most as usize * 64 + 1), expected);
    // The shared memory of 1 KiB is too small for the smallest tile.
    let expected = unsupported("joint_attention", "batch", 2, "what fits shared memory");
    refused(attention, |k| k.shared_bytes = Some(1 << 10), expected);
}

#[test]
fn joint_attention_of_separate_tensors() {
    taken(separate);
    operands_are_checked(
        separate,
        KERNEL,
        &[
            measured("q", 16, |k: &mut Attention| &mut k.separate.as_mut().unwrap().0[0]),
            measured("mask q", 16, |k| &mut k.separate.as_mut().unwrap().0[1]),
            measured("mask k", 16, |k| &mut k.separate.as_mut().unwrap().0[2]),
            measured("mask v", 16, |k| &mut k.separate.as_mut().unwrap().0[3]),
            measured("out", 16, |k| &mut k.out),
        ],
    );
    refused(separate, |k| k.has_masks = false, length(KERNEL, "mask q", 4 * 4 * 64, 0));
    row_strides_are_checked(separate, |k| &mut k.separate.as_mut().unwrap().1, KERNEL);
}

/// Checks that distances of rows are refused if rows overlap, if they misalign a row, or if they overflow positions.
pub fn row_strides_are_checked<K: Launch>(
    sound: fn() -> K,
    stride: fn(&mut K) -> &mut usize,
    kernel: &'static str,
) {
    for found in [4 * 64 - 8, 4 * 64 + 4] {
        let supported = "multiples of 8 elements, at least a row";
        let expected = unsupported(kernel, "a stride of rows", found as i64, supported);
        refused(sound, |k| *stride(k) = found, expected);
    }
    let expected = KernelError::Overflow { kernel, what: "q" };
    refused(sound, |k| *stride(k) = i64::MAX as usize / 8 * 8, expected);
}

/// Checks that unsupported heads are refused, with an error that names the kernel: `few` for few heads, `many` for 17
/// heads per KV head, `other` for other head dimensions.
pub fn heads_are_checked<K: Launch>(
    sound: fn() -> K,
    shape: fn(&mut K) -> &mut AttentionShape,
    [few, many, other]: [&'static str; 3],
) {
    for (kernel, q_heads, kv_heads) in [(few, 0, 2), (few, 4, 0), (few, 3, 2), (many, 34, 2)] {
        let supported = "1 to 16 for each KV head";
        let expected = unsupported(kernel, "number of query heads", q_heads as i64, supported);
        let spoil = |k: &mut K| *shape(k) = AttentionShape { q_heads, kv_heads, head_dim: 64 };
        refused(sound, spoil, expected);
    }
    let heads = usize::MAX / 2;
    let spoil = |k: &mut K| *shape(k) = AttentionShape { q_heads: heads, kv_heads: heads, head_dim: 64 };
    refused(sound, spoil, KernelError::Overflow { kernel: few, what: "heads" });
    let expected = unsupported(other, "head_dim", 96, "64, 128");
    refused(sound, |k| shape(k).head_dim = 96, expected);
}

/// Checks that strides of the cache are refused if they misalign a head's elements or overflow positions.
pub fn strides_are_checked<K: Launch>(
    sound: fn() -> K,
    strides: fn(&mut K) -> &mut KvStrides,
    kernel: &'static str,
) {
    let parts: [fn(&mut KvStrides) -> &mut usize; 3] = [|s| &mut s.page, |s| &mut s.token, |s| &mut s.head];
    for part in parts {
        let expected = unsupported(kernel, "a stride of the cache", 68, "multiples of 8 elements");
        refused(sound, |k| *part(strides(k)) = 68, expected);
    }
    let far = i64::MAX as usize / 8 * 8;
    let expected = KernelError::Overflow { kernel, what: "k cache" };
    refused(sound, |k| strides(k).page = far, expected);
}
