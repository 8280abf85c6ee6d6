//! The floor of a kernel: the least time that it can take, from the bytes that it must move and the products that it
//! must compute, and from the device's measured limits.
//!
//! The floor counts the operands in the formulas of the method, each byte once. It leaves out tables of a few bytes per
//! row and arithmetic outside of matrix products, which bounds no kernel here.
//! `tests/kernels/on_the_emulator/floors.rs` compares the bytes with the reads and writes that the SIMT emulator sees.

/// Size of a stored bf16 or f32 element, in bytes.
const BF16: u64 = 2;
const F32: u64 = 4;

/// Sizes in bytes of the structs `RowSampling`, `RowStats`, `Verify`, `Verdict` and `Draft` that kernels read or write.
const ROW_SAMPLING: u64 = 40;
const ROW_STATS: u64 = 48;
const VERIFY: u64 = 48;
const VERDICT: u64 = 32;
const DRAFT: u64 = 32;

/// The least bytes and operations that a kernel launch needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Floor {
    /// Number of bytes that the launch must read.
    pub read: u64,
    /// Number of bytes that the launch must write.
    pub written: u64,
    /// Number of floating-point operations of matrix products; a multiply-add counts as two.
    pub flops: u64,
}

/// The measured rates of a device, per second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Peaks {
    /// Bytes per second, read plus written, of a copy in device memory.
    pub bytes: f64,
    /// Floating-point operations per second of a large bf16 product.
    pub flops: f64,
}

/// The resource that limits a kernel's speed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// Memory bandwidth limits the kernel.
    Memory,
    /// The matrix units limit the kernel.
    Math,
}

impl Floor {
    /// Returns the bytes read plus the bytes written.
    pub fn bytes(&self) -> u64 {
        self.read + self.written
    }

    /// Returns the least time in seconds, and the resource that bounds it.
    pub fn seconds(&self, peaks: Peaks) -> (f64, Bound) {
        let memory = self.bytes() as f64 / peaks.bytes;
        let math = self.flops as f64 / peaks.flops;
        if math > memory { (math, Bound::Math) } else { (memory, Bound::Memory) }
    }
}

/// The head counts and head size of an attention layer.
#[derive(Clone, Copy, Debug)]
pub struct Heads {
    pub q_heads: u64,
    pub kv_heads: u64,
    pub head_dim: u64,
}

/// The shape of one sequence in an attention pass: `candidates` rows from position `start` on, and `slots` mask rows
/// for each of `groups` (accepted lengths).
#[derive(Clone, Debug)]
pub struct AttentionRows {
    pub start: u64,
    pub candidates: u64,
    pub groups: Vec<u64>,
    pub slots: u64,
}

impl AttentionRows {
    /// Returns, for each row of the sequence, the number of cached positions that it sees, and the number of slots of
    /// its own group.
    fn seen(&self) -> impl Iterator<Item = (u64, u64)> {
        let candidates = (0..self.candidates).map(|i| (self.start + i + 1, 0));
        let masks = self
            .groups
            .iter()
            .flat_map(move |group| (0..self.slots).map(move |_| (self.start + group + 1, self.slots)));
        candidates.chain(masks)
    }
}

/// Returns the floor of joint attention: the visible keys and values of every sequence once, the rows' queries, the
/// mask rows' own keys and values, and the output. Each visible key takes two products of `head_dim`. The f32 states
/// that pass between CTAs if a sequence's keys are divided among several are not part of the floor.
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

/// The extra work of sampling with the calibrator.
#[derive(Clone, Copy, Debug)]
pub struct Calibrated {
    pub rank: u64,
    /// True if the calibrated logits are written back, as the rule `rejection` needs them.
    pub kept: bool,
}

/// Returns the floor of sampling `rows` rows of `vocab` logits of `logit_bytes` each: one pass over the logits; with
/// the calibrator also over W2, b2 and u, and a write of the corrected logits if they are kept. Partial results per
/// chunk of ids are small and not counted. Top-k, top-p and min-p read logits again, which the floor does not count
/// either.
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

/// The logits that acceptance reads under a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scan {
    /// The rule reads no logits, only the statistics of rows: greedy acceptance and the rule `match`.
    Statistics,
    /// The rule reads the logits of target and drafter at the position where the scan stops: the rule `rejection`.
    Rejection,
    /// The rule reads the logits of target and drafter for every draft token: the rule `block`.
    Block,
}

/// Returns the floor of acceptance with `drafts` draft tokens for each of `batch` sequences, if no sequence accepts all
/// of its draft tokens.
pub fn acceptance(batch: u64, drafts: u64, vocab: u64, logit_bytes: u64, scan: Scan) -> Floor {
    // The number of rows of logits that acceptance reads per sequence, and the further bytes per row: its token and
    // fault, or the statistics of its distribution.
    let (rows, row) = match scan {
        Scan::Statistics => (0, 2 * F32),
        Scan::Rejection => (2, ROW_STATS),
        Scan::Block => (2 * drafts, ROW_STATS),
    };
    // A draft token is an i32, which has the size of an f32; each sequence has 64 places for committed tokens.
    let statistics = (drafts + 1) * row + VERIFY + drafts * F32;
    Floor {
        read: batch * (rows * vocab * logit_bytes + statistics),
        written: batch * (VERDICT + 64 * F32),
        flops: 0,
    }
}

/// Returns the floor of `x += delta` followed by RMSNorm of x: both tensors are read once, x and the result written.
pub fn rms_norm(rows: u64, cols: u64) -> Floor {
    Floor { read: 2 * rows * cols * BF16 + cols * F32, written: 2 * rows * cols * BF16, flops: 0 }
}

/// Returns the floor of silu(gate) · up, `[rows, 2 cols]` to `[rows, cols]`.
pub fn silu_mul(rows: u64, cols: u64) -> Floor {
    Floor { read: 2 * rows * cols * BF16, written: rows * cols * BF16, flops: 0 }
}

/// Returns the floor of silu(x + bonus) in place of x, `[rows, cols]`, where several rows of x share a row of `bonus`.
pub fn silu_add(rows: u64, bonus_rows: u64, cols: u64) -> Floor {
    let read = (rows + bonus_rows) * cols * BF16 + rows * F32;
    Floor { read, written: rows * cols * BF16, flops: 0 }
}

/// Returns the floor of x + delta in place of x, `[rows, cols]`.
pub fn add(rows: u64, cols: u64) -> Floor {
    Floor { read: 2 * rows * cols * BF16, written: rows * cols * BF16, flops: 0 }
}

/// Returns the floor of computing the rotations: cosine and sine of every pair of a row's elements.
pub fn rope_table(rows: u64, head_dim: u64) -> Floor {
    Floor { read: head_dim / 2 * F32, written: rows * head_dim * F32, flops: 0 }
}

/// Returns the floor of selecting the rows that draft next, for a batch with `slots` slots per mask group: the kernel
/// reads a table entry and three fields of a verdict, and writes the bonus token and its position, and two indices per
/// drafted row.
pub fn select_drafts(batch: u64, slots: u64) -> Floor {
    let verdict = 2 * F32 + 8;
    Floor { read: batch * (DRAFT + verdict), written: batch * (2 + 2 * (slots - 1)) * F32, flops: 0 }
}

/// Returns the floor of moving each sequence's mask group to its accepted length: the kernel reads two fields of the
/// sequence's verdict, the verdict's number, the position where the pass begins, and the group's previous position.
pub fn follow_verdicts(batch: u64) -> Floor {
    let verdict = F32 + 8;
    Floor { read: batch * (3 * F32 + verdict), written: batch * F32, flops: 0 }
}

/// Returns the floor of choosing `count` ids in each of `rows` rows of `vocab` logits of `logit_bytes` each: the largest
/// logit of every chunk of 1024 ids, and the logits of as many chunks as ids are chosen.
pub fn chain_choose(rows: u64, vocab: u64, logit_bytes: u64, count: u64) -> Floor {
    let chunks = vocab.div_ceil(1024);
    let read = chunks * F32 + (count.min(chunks) * 1024).min(vocab) * logit_bytes;
    Floor { read: rows * read, written: rows * count * 2 * F32, flops: 0 }
}

/// Returns the floor of the scores of all pairs of neighbouring tokens, for `batch` drafts with `rows` rows together: the
/// factors of every token before a row and of every scored id, of `rank` elements each, and the scores. No row is scored
/// after the ids of a draft's last row.
pub fn chain_score(batch: u64, rows: u64, rank: u64, after_bytes: u64, count: u64) -> Floor {
    let before = batch + (rows - batch) * count;
    let read = rank * (before * F32 + rows * count * after_bytes) + rows * F32;
    Floor { read, written: before * count * F32, flops: 0 }
}

/// Returns the floor of walking through `batch` drafts with `rows` rows together: each row has its `count` ids and their
/// logits, which the chained logits replace, one line of its table of scores, and its sampling parameters and statistics.
pub fn chain_walk(batch: u64, rows: u64, count: u64) -> Floor {
    let read = batch * DRAFT + rows * (ROW_SAMPLING + 3 * count * F32);
    Floor { read, written: rows * (ROW_STATS + count * F32), flops: 0 }
}

/// Returns the floor of looking up rows of a table, `[rows, cols]`, by id: an embedding, or a gather.
pub fn embed(rows: u64, cols: u64) -> Floor {
    Floor { read: rows * (cols * BF16 + F32), written: rows * cols * BF16, flops: 0 }
}

/// Returns the floor of the kernel that norms and rotates queries and keys and appends the candidates' keys and values
/// to the cache; queries stay in place.
pub fn norm_rope_append(rows: u64, heads: Heads) -> Floor {
    let Heads { q_heads, kv_heads, head_dim } = heads;
    let width = (q_heads + 2 * kv_heads) * head_dim;
    Floor { read: rows * (width * BF16 + head_dim * F32), written: rows * width * BF16, flops: 0 }
}
