//! Tests that the kernels around the matrix products refuse operands that do not fit.

use flexdraft::kernels::KernelError;
use flexdraft::kernels::activation::{SiluAdd, SiluMul};
use flexdraft::kernels::embedding::{Embed, Gather};
use flexdraft::kernels::norm::{Add, Residual, RmsNorm};
use flexdraft::kernels::rope::{NormRopeAppend, RopeTable};
use flexdraft::kernels::{HeadRows, HeadRowsMut, KvStrides, PagedKvMut, ProjectionsMut};
use flexdraft::layout::{AttentionShape, RowKind};
use half::bf16;

use super::memory::Memory;
use super::pass::{PAGE_SIZE, PAGES, tables};
use super::{Host, Launch, length, measure, measured, operands_are_checked, refused, taken, unsupported};

const NO_COLUMNS: &str = "multiples of 8";

/// Operands of kernels that use an index: two rows of 16 elements looked up in a table of three rows, or with two table
/// rows added to them.
struct ByIndex {
    kernel: &'static str,
    cols: usize,
    index: Memory,
    table: Memory,
    out: Memory,
    error: Memory,
}

fn by_index(kernel: &'static str) -> ByIndex {
    ByIndex {
        kernel,
        cols: 16,
        index: Memory::of(&[2i32, 0]),
        table: Memory::zeros::<bf16>(3 * 16),
        out: Memory::zeros::<bf16>(2 * 16),
        error: Memory::zeros::<u32>(1),
    }
}

impl Launch for ByIndex {
    fn launch(&mut self, host: &Host) -> Result<(), KernelError> {
        let (kernels, stream, cols) = (&host.kernels, &host.stream, self.cols);
        let (index, table) = (self.index.view(host), self.table.view::<bf16>(host));
        let (out, error) = (self.out.view_mut(host), Some(self.error.view_mut(host)));
        match self.kernel {
            "embed" => kernels.embed(stream, &Embed { ids: index, table, out, error, cols }),
            "gather" => kernels.gather(stream, &Gather { indices: index, x: table, out, error, cols }),
            _ => kernels.silu_add(stream, &SiluAdd { x: out, bonus: table, owner: index, error, cols }),
        }
    }
}

#[test]
fn embed_gather_and_silu_add() {
    let kernels = [
        ("embed", (|| by_index("embed")) as fn() -> ByIndex, ["ids", "table", "out"]),
        ("gather", || by_index("gather"), ["indices", "x", "out"]),
        ("silu_add", || by_index("silu_add"), ["owner", "bonus", "x"]),
    ];
    for (kernel, sound, [index, table, out]) in kernels {
        taken(sound);
        operands_are_checked(
            sound,
            kernel,
            &[
                measure(index, 4, |k| &mut k.index),
                measure(table, 16, |k| &mut k.table),
                measured(out, 16, |k| &mut k.out),
                measured("error word", 4, |k| &mut k.error),
            ],
        );
        // The table has rows of 16 elements; a remainder of less than a row does not count.
        refused(sound, |k| k.table.shorten(1), length(kernel, table, 2 * 16, 3 * 16 - 1));
        refused(sound, |k| k.index.shorten(1), length(kernel, out, 16, 2 * 16));
        for cols in [0, 4, 12] {
            let expected = unsupported(kernel, "number of columns", cols as i64, NO_COLUMNS);
            refused(sound, |k| k.cols = cols, expected);
        }
        let expected = KernelError::Overflow { kernel, what: "columns" };
        refused(sound, |k| k.cols = 1 << 31, expected);
    }
}

/// Operands of RMSNorm: three rows of 16 elements, with or without a `delta` that is added first.
struct Norm {
    x: Memory,
    delta: Option<Memory>,
    weight: Memory,
    out: Memory,
}

fn norm() -> Norm {
    Norm {
        x: Memory::zeros::<bf16>(3 * 16),
        delta: None,
        weight: Memory::zeros::<f32>(16),
        out: Memory::zeros::<bf16>(3 * 16),
    }
}

fn norm_of_a_sum() -> Norm {
    Norm { delta: Some(Memory::zeros::<bf16>(3 * 16)), ..norm() }
}

impl Launch for Norm {
    fn launch(&mut self, host: &Host) -> Result<(), KernelError> {
        let x: Residual<'_> = match &self.delta {
            None => Residual::Is(self.x.view(host)),
            Some(delta) => Residual::Add { x: self.x.view_mut(host), delta: delta.view(host) },
        };
        let (weight, out) = (self.weight.view(host), self.out.view_mut(host));
        host.kernels.rms_norm(&host.stream, &RmsNorm { x, weight, out, eps: 1e-6 })
    }
}

#[test]
fn rms_norm() {
    const KERNEL: &str = "rms_norm";
    for sound in [norm, norm_of_a_sum] {
        taken(sound);
        operands_are_checked(
            sound,
            KERNEL,
            &[
                measured("x", 16, |k| &mut k.x),
                measure("weight", 16, |k| &mut k.weight),
                measure("out", 16, |k| &mut k.out),
            ],
        );
        // The number of whole rows in `out` determines how many rows `x` must have.
        refused(sound, |k| k.out.shorten(1), length(KERNEL, "x", 2 * 16, 3 * 16));
        for cols in [0, 12] {
            let expected = unsupported(KERNEL, "number of columns", cols as i64, NO_COLUMNS);
            refused(sound, |k| k.weight.shorten(16 - cols), expected);
        }
    }
    let delta = measured("delta", 16, |k: &mut Norm| k.delta.as_mut().unwrap());
    operands_are_checked(norm_of_a_sum, KERNEL, &[delta]);
}

/// Operands of `add` (`x` and delta) or of `silu_mul` (gate and up, and the output).
struct Two {
    kernel: &'static str,
    cols: usize,
    x: Memory,
    other: Memory,
}

impl Launch for Two {
    fn launch(&mut self, host: &Host) -> Result<(), KernelError> {
        let (kernels, stream, cols) = (&host.kernels, &host.stream, self.cols);
        match self.kernel {
            "add" => {
                let (x, delta) = (self.x.view_mut::<bf16>(host), self.other.view(host));
                kernels.add(stream, &Add { x, delta })
            }
            _ => {
                let (x, out) = (self.x.view::<bf16>(host), self.other.view_mut(host));
                kernels.silu_mul(stream, &SiluMul { x, out, cols })
            }
        }
    }
}

#[test]
fn add() {
    let sound =
        || Two { kernel: "add", cols: 0, x: Memory::zeros::<bf16>(24), other: Memory::zeros::<bf16>(24) };
    taken(sound);
    let operands = [measured("x", 16, |k: &mut Two| &mut k.x), measure("delta", 16, |k| &mut k.other)];
    operands_are_checked(sound, "add", &operands);
    refused(sound, |k| k.other.shorten(4), unsupported("add", "number of elements", 20, NO_COLUMNS));
}

#[test]
fn silu_mul() {
    const KERNEL: &str = "silu_mul";
    let sound = || Two {
        kernel: KERNEL,
        cols: 16,
        x: Memory::zeros::<bf16>(2 * 2 * 16),
        other: Memory::zeros::<bf16>(2 * 16),
    };
    taken(sound);
    let operands = [measured("x", 16, |k: &mut Two| &mut k.x), measure("out", 16, |k| &mut k.other)];
    operands_are_checked(sound, KERNEL, &operands);
    refused(sound, |k| k.other.shorten(1), length(KERNEL, "x", 2 * 16, 2 * 2 * 16));
    for cols in [0, 12] {
        let expected = unsupported(KERNEL, "number of columns", cols as i64, NO_COLUMNS);
        refused(sound, |k| k.cols = cols, expected);
    }
}

/// Operands of the kernel that computes the rotations for the pass in `pass.rs`.
struct Turns {
    inv_freq: Memory,
    cos_sin: Memory,
}

impl Launch for Turns {
    fn launch(&mut self, host: &Host) -> Result<(), KernelError> {
        let pass = &tables(host);
        let (inv_freq, cos_sin) = (self.inv_freq.view(host), self.cos_sin.view_mut(host));
        host.kernels.rope_table(&host.stream, &RopeTable { pass, inv_freq, scale: 1.0, cos_sin })
    }
}

#[test]
fn rope_table() {
    const KERNEL: &str = "rope_table";
    let sound = || Turns { inv_freq: Memory::zeros::<f32>(32), cos_sin: Memory::zeros::<f32>(ROWS * 64) };
    taken(sound);
    let operands =
        [measure("inv_freq", 4, |k: &mut Turns| &mut k.inv_freq), measured("cos_sin", 8, |k| &mut k.cos_sin)];
    operands_are_checked(sound, KERNEL, &operands);
    let expected = unsupported(KERNEL, "number of frequencies", 0, "head_dim / 2");
    refused(sound, |k| k.inv_freq.shorten(32), expected);
}

const ROWS: usize = super::pass::ROWS;

/// Operands of the kernel that appends the candidates of the pass in `pass.rs` to the cache.
struct Append {
    shape: AttentionShape,
    qkv: Memory,
    cos_sin: Memory,
    norms: (Memory, Memory),
    k: Memory,
    v: Memory,
    strides: KvStrides,
    error: Memory,
    /// The tensors of the candidates' q, k and v in place of `qkv`, with the distance of their rows.
    separate: Option<([Memory; 3], usize)>,
}

fn append() -> Append {
    let cached = || Memory::zeros::<bf16>(PAGES * PAGE_SIZE * 2 * 64);
    let norm = || Memory::zeros::<f32>(64);
    Append {
        shape: AttentionShape { q_heads: 4, kv_heads: 2, head_dim: 64 },
        qkv: Memory::zeros::<bf16>(ROWS * 8 * 64),
        cos_sin: Memory::zeros::<f32>(ROWS * 64),
        norms: (norm(), norm()),
        k: cached(),
        v: cached(),
        strides: KvStrides::token_major(PAGE_SIZE, 2, 64),
        error: Memory::zeros::<u32>(1),
        separate: None,
    }
}

/// Returns the operands with the q, k and v of four candidates in separate tensors, whose rows have the distance of
/// q's.
fn append_separate() -> Append {
    let rows = |elements: usize| Memory::zeros::<bf16>(3 * 4 * 64 + elements);
    Append { separate: Some(([rows(4 * 64), rows(2 * 64), rows(2 * 64)], 4 * 64)), ..append() }
}

impl Launch for Append {
    fn launch(&mut self, host: &Host) -> Result<(), KernelError> {
        let pass = &tables(host);
        let qkv = match &mut self.separate {
            None => self.qkv.view_mut::<bf16>(host).into(),
            Some(([q, k, v], stride)) => ProjectionsMut::Separate {
                q: HeadRowsMut { view: q.view_mut(host), stride: *stride },
                k: HeadRowsMut { view: k.view_mut(host), stride: *stride },
                v: HeadRows { view: v.view(host), stride: *stride },
            },
        };
        let args = NormRopeAppend {
            pass,
            kind: RowKind::Candidates,
            qkv,
            cos_sin: self.cos_sin.view(host),
            norms: Some((self.norms.0.view(host), self.norms.1.view(host))),
            eps: 1e-6,
            cache: PagedKvMut {
                k: self.k.view_mut(host),
                v: self.v.view_mut(host),
                k_strides: self.strides,
                v_strides: self.strides,
            },
            shape: self.shape,
            error: Some(self.error.view_mut(host)),
        };
        host.kernels.norm_rope_append(&host.stream, &args)
    }
}

#[test]
fn norm_rope_append() {
    const KERNEL: &str = "norm_rope_append_d64";
    taken(append);
    operands_are_checked(
        append,
        KERNEL,
        &[
            measured("qkv", 16, |k: &mut Append| &mut k.qkv),
            measured("cos_sin", 8, |k| &mut k.cos_sin),
            measured("q norm", 4, |k| &mut k.norms.0),
            measured("k norm", 4, |k| &mut k.norms.1),
            measured("k cache", 16, |k| &mut k.k),
            measured("v cache", 16, |k| &mut k.v),
            measured("error word", 4, |k| &mut k.error),
        ],
    );
    let kernels = [KERNEL, KERNEL, "norm_rope_append_d128"];
    super::attention::heads_are_checked(append, |k| &mut k.shape, kernels);
    super::attention::strides_are_checked(append, |k| &mut k.strides, KERNEL);
    taken(append_separate);
    operands_are_checked(
        append_separate,
        KERNEL,
        &[
            measured("q", 16, |k: &mut Append| &mut k.separate.as_mut().unwrap().0[0]),
            measured("k", 16, |k| &mut k.separate.as_mut().unwrap().0[1]),
            measured("v", 16, |k| &mut k.separate.as_mut().unwrap().0[2]),
            measured("cos_sin", 8, |k| &mut k.cos_sin),
        ],
    );
    super::attention::row_strides_are_checked(
        append_separate,
        |k| &mut k.separate.as_mut().unwrap().1,
        KERNEL,
    );
}
