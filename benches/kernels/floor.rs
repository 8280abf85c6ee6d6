//! The least time that a kernel can take: what it has to move through memory and to multiply, over what the
//! device can move and multiply in a second.
//!
//! Counted are the operands of the method's own formulas, each byte once. Not counted are tables of a few bytes a
//! row, and the arithmetic outside of matrix products, which no kernel here is bound by. `tests/kernels/floors.rs`
//! compares the bytes with those that the SIMT host sees the kernels read and write.

/// Bytes of an element.
const BF16: u64 = 2;
const F32: u64 = 4;

/// `RowSampling`, `RowStats`, `Verify`, `Verdict` and `Draft` of the kernels, in bytes.
const ROW_SAMPLING: u64 = 40;
const ROW_STATS: u64 = 48;
const VERIFY: u64 = 48;
const VERDICT: u64 = 24;
const DRAFT: u64 = 32;

/// What a launch cannot do without.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Floor {
    /// Bytes read.
    pub read: u64,
    /// Bytes written.
    pub written: u64,
    /// Floating-point operations of matrix products, two a multiply-add.
    pub flops: u64,
}

/// What a device does in a second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ceilings {
    /// Bytes read plus bytes written by a copy.
    pub bytes: f64,
    /// Floating-point operations of a large bf16 product.
    pub flops: f64,
}

/// What binds a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// Moving bytes.
    Memory,
    /// The matrix units.
    Math,
}

impl Floor {
    /// Bytes read and written.
    pub fn bytes(&self) -> u64 {
        self.read + self.written
    }

    /// The least time in seconds, and what it is spent on.
    pub fn seconds(&self, ceilings: Ceilings) -> (f64, Bound) {
        let memory = self.bytes() as f64 / ceilings.bytes;
        let math = self.flops as f64 / ceilings.flops;
        if math > memory { (math, Bound::Math) } else { (memory, Bound::Memory) }
    }
}

/// The heads of an attention layer.
#[derive(Clone, Copy, Debug)]
pub struct Heads {
    pub q_heads: u64,
    pub kv_heads: u64,
    pub head_dim: u64,
}

/// One sequence of an attention pass: `candidates` rows from position `start` on, and `slots` mask rows for
/// each of `groups` (accepted lengths).
#[derive(Clone, Debug)]
pub struct AttentionRows {
    pub start: u64,
    pub candidates: u64,
    pub groups: Vec<u64>,
    pub slots: u64,
}

impl AttentionRows {
    /// Cached positions that each row sees, and slots of its own group besides.
    fn seen(&self) -> impl Iterator<Item = (u64, u64)> {
        let candidates = (0..self.candidates).map(|i| (self.start + i + 1, 0));
        let masks = self
            .groups
            .iter()
            .flat_map(move |group| (0..self.slots).map(move |_| (self.start + group + 1, self.slots)));
        candidates.chain(masks)
    }
}

/// Joint attention: the visible K and V of every sequence once, the rows' q, the mask rows' own k and v, and the
/// output. Two products of `head_dim` a visible key. The f32 states that pass between CTAs where a sequence's keys
/// are divided among several are what a kernel adds.
pub fn attention(heads: Heads, sequences: &[AttentionRows]) -> Floor {
    let Heads { q_heads, kv_heads, head_dim } = heads;
    let (q_row, kv_row) = (q_heads * head_dim * BF16, 2 * kv_heads * head_dim * BF16);
    let mut floor = Floor::default();
    for sequence in sequences {
        let mut cached = 0;
        for (positions, slots) in sequence.seen() {
            cached = cached.max(positions);
            floor.read += q_row + if slots > 0 { kv_row } else { 0 };
            floor.written += q_row;
            floor.flops += 4 * head_dim * q_heads * (positions + slots);
        }
        floor.read += cached * kv_row;
    }
    floor
}

/// What the calibrator adds to sampling.
#[derive(Clone, Copy, Debug)]
pub struct Calibrated {
    pub rank: u64,
    /// Whether the corrected logits are kept.
    pub kept: bool,
}

/// Sampling `rows` rows of `vocab` logits of `logit_bytes` each: one pass over them, with the calibrator also
/// over W2, b2 and u, and back where corrected logits are kept. Partial results of a chunk of ids are few.
/// Top-k, top-p and min-p look at logits again, which the floor does not grant them.
pub fn sampling(rows: u64, vocab: u64, logit_bytes: u64, calibrated: Option<Calibrated>) -> Floor {
    let logits = rows * vocab * logit_bytes;
    let mut floor = Floor { read: logits + rows * ROW_SAMPLING, written: rows * ROW_STATS, flops: 0 };
    if let Some(Calibrated { rank, kept }) = calibrated {
        floor.read += vocab * rank * BF16 + vocab * F32 + rows * rank * BF16;
        floor.written += if kept { logits } else { 0 };
        floor.flops += 2 * rows * vocab * rank;
    }
    floor
}

/// The rules that differ in what they read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scan {
    /// Greedy and `match`: statistics of rows only.
    Statistics,
    /// `rejection`: p and q at the one position where it stopped.
    Rejection,
    /// `block`: p and q of every draft token.
    Block,
}

/// Acceptance of `drafts` tokens for each of `batch` sequences, none of which accepts all.
pub fn acceptance(batch: u64, drafts: u64, vocab: u64, logit_bytes: u64, scan: Scan) -> Floor {
    // Rows of logits, and what has to be known of each row besides: its token, or its distribution.
    let (rows, row) = match scan {
        Scan::Statistics => (0, F32),
        Scan::Rejection => (2, ROW_STATS),
        Scan::Block => (2 * drafts, ROW_STATS),
    };
    // Tokens are i32, as wide as f32; 64 places a sequence for those committed.
    let statistics = (drafts + 1) * row + VERIFY + drafts * F32;
    Floor {
        read: batch * (rows * vocab * logit_bytes + statistics),
        written: batch * (VERDICT + 64 * F32),
        flops: 0,
    }
}

/// `x += delta`, then RMSNorm of x: both tensors once, x and the result written.
pub fn rms_norm(rows: u64, cols: u64) -> Floor {
    Floor { read: 2 * rows * cols * BF16 + cols * F32, written: 2 * rows * cols * BF16, flops: 0 }
}

/// silu(gate) · up, `[rows, 2 cols]` to `[rows, cols]`.
pub fn silu_mul(rows: u64, cols: u64) -> Floor {
    Floor { read: 2 * rows * cols * BF16, written: rows * cols * BF16, flops: 0 }
}

/// silu(x + bonus) in place of x, `[rows, cols]`, with a row of `bonus` for many of x.
pub fn silu_add(rows: u64, bonus_rows: u64, cols: u64) -> Floor {
    let read = (rows + bonus_rows) * cols * BF16 + rows * F32;
    Floor { read, written: rows * cols * BF16, flops: 0 }
}

/// x + delta in place of x, `[rows, cols]`.
pub fn add(rows: u64, cols: u64) -> Floor {
    Floor { read: 2 * rows * cols * BF16, written: rows * cols * BF16, flops: 0 }
}

/// Cosine and sine of every pair of a row's elements.
pub fn rope_table(rows: u64, head_dim: u64) -> Floor {
    Floor { read: head_dim / 2 * F32, written: rows * head_dim * F32, flops: 0 }
}

/// Which rows draft next, of a batch with `slots` slots a group: a table entry and three fields of a verdict; the
/// bonus token and its position, and two indices of every drafted row.
pub fn select_drafts(batch: u64, slots: u64) -> Floor {
    let verdict = 2 * F32 + 8;
    Floor { read: batch * (DRAFT + verdict), written: batch * (2 + 2 * (slots - 1)) * F32, flops: 0 }
}

/// Where the group of each sequence goes: its verdict's number and two fields of that, where the pass begins and
/// where the group was.
pub fn follow_verdicts(batch: u64) -> Floor {
    let verdict = F32 + 8;
    Floor { read: batch * (3 * F32 + verdict), written: batch * F32, flops: 0 }
}

/// Rows of a table, `[rows, cols]`, by id: an embedding, or a gather.
pub fn embed(rows: u64, cols: u64) -> Floor {
    Floor { read: rows * (cols * BF16 + F32), written: rows * cols * BF16, flops: 0 }
}

/// q and k norms, the rotation, and the append of candidates' k and v to the cache: q stays where it is.
pub fn norm_rope_append(rows: u64, heads: Heads) -> Floor {
    let Heads { q_heads, kv_heads, head_dim } = heads;
    let width = (q_heads + 2 * kv_heads) * head_dim;
    Floor { read: rows * (width * BF16 + head_dim * F32), written: rows * width * BF16, flops: 0 }
}
