//! Joint draft-and-verify attention over one layer of a paged KV cache.
//!
//! One family for every step of FlexDraft: with candidates and groups it is the joint attention of parallel
//! mode, without groups the verification of sequential mode, with one candidate autoregressive decoding,
//! with one group and no candidates mask-token block attention. A row's result has the same bits in each, at
//! any place in any batch.
//!
//! Per launch it reads the visible K and V once for every block of rows (64 or 128 query heads of rows that
//! share a KV head). Keys are divided among CTAs: by splits while there are few, by spans of 4 splits once that
//! occupies the processor. A state in f32 for every row, head and part is written and read, except where a
//! sequence has one part. How keys are divided changes no bit.

use std::mem::size_of;

use half::bf16;

use super::kv::{KvShape, PagedKv};
use super::operands::{Grid, Operands};
use super::params::attention::{FLEXDRAFT_SPAN_SPLITS, FlexdraftAttentionParams};
use super::pass::{PassTables, SequenceSize};
use super::{KernelError, Kernels};
use crate::backend::{Backend, Limits, View, ViewMut};
use crate::layout::AttentionShape;

/// Keys of a tile: splits are multiples of it.
const TILE_KEYS: usize = 64;

/// Splits of a span.
const SPAN: usize = FLEXDRAFT_SPAN_SPLITS as usize;

/// Splits of a sequence that the merge has levels for: 2^12 − 1 spans.
const MAX_SPLITS: usize = 4095 * SPAN;

/// Threads that a multiprocessor has registers for, at up to 256 each: its 65536 are those of every compute
/// capability from 8.0 to 12.0.
const THREADS_TOGETHER: u32 = 65536 / 256;

/// Shared memory that every CTA takes besides its own, in bytes.
const RESERVED_SHARED: u32 = 1024;

/// Heads of a CTA of the merge, and how many there may be: a grid's second dimension ends at 65535.
const HEADS_A_CTA: usize = 4;
const MAX_HEADS: usize = 65_535 * HEADS_A_CTA;

/// Groups of states that the small merge has levels for.
const FEW_GROUPS: usize = 31;

/// What decides how keys are divided, roughly and for any processor alike: seconds that a multiprocessor takes for an
/// element of a key (a tile of 64 keys of 128 elements in 1.5 µs: what its share of the memory brings, and about what
/// its matrix units do for 128 rows) …
const SECONDS_PER_KEY_ELEMENT: f64 = 1.5e-6 / (64.0 * 128.0);

/// … and for a byte of a state, written and read by all of them together.
const SECONDS_PER_STATE_BYTE: f64 = 2.0 / 3e12;

/// The split that keeps the processors of a large GPU busy at batch 1 and context 8k.
pub const DEFAULT_SPLIT: usize = 512;

/// How a kernel of the family divides its work. Which one runs changes no bit of the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tile {
    kernel: &'static str,
    head_dim: usize,
    /// Query heads of rows that share each K and V tile: 16 or 32 for each of four warps.
    rows: usize,
    /// K and V tiles in shared memory; one is read while the others are filled.
    stages: usize,
}

/// All of them: more rows read K and V less often, more stages hide more latency.
const TILES: [Tile; 7] = [
    Tile { kernel: "joint_attention_d64_r64_s2", head_dim: 64, rows: 64, stages: 2 },
    Tile { kernel: "joint_attention_d64_r64_s3", head_dim: 64, rows: 64, stages: 3 },
    Tile { kernel: "joint_attention_d64_r128_s2", head_dim: 64, rows: 128, stages: 2 },
    Tile { kernel: "joint_attention_d64_r128_s3", head_dim: 64, rows: 128, stages: 3 },
    Tile { kernel: "joint_attention_d128_r64_s2", head_dim: 128, rows: 64, stages: 2 },
    Tile { kernel: "joint_attention_d128_r64_s3", head_dim: 128, rows: 64, stages: 3 },
    Tile { kernel: "joint_attention_d128_r128_s2", head_dim: 128, rows: 128, stages: 2 },
];

/// Threads of a CTA.
const THREADS: u32 = 128;

/// Bytes of a CTA's shared memory for what it works on, and for each of its rows (`Item` and the tables of `Joint` in
/// attention.cu).
const ITEM_BYTES: usize = 44;
const ROW_BYTES: usize = 10;

impl Tile {
    /// Shared memory of a CTA in bytes, for a batch of so many sequences.
    fn shared_bytes(self, batch: usize) -> usize {
        let row = self.head_dim * size_of::<bf16>();
        let tiles = row * (self.rows + self.stages * 2 * TILE_KEYS);
        tiles + self.rows * ROW_BYTES + ITEM_BYTES + (batch + 1) * size_of::<i32>()
    }

    /// The one with most warps on a multiprocessor, then most stages, of those that fit a CTA: of 64 rows if no
    /// sequence has more.
    fn choose(head_dim: usize, packed_rows: usize, batch: usize, limits: Limits) -> Option<Self> {
        let fits = |tile: &Tile| tile.shared_bytes(batch) <= limits.shared_bytes_per_cta as usize;
        let usable = || TILES.into_iter().filter(|tile| tile.head_dim == head_dim).filter(fits);
        let enough = usable().map(|tile| tile.rows).filter(|&rows| rows >= packed_rows).min();
        let rows = enough.or(usable().map(|tile| tile.rows).max())?;
        usable()
            .filter(|tile| tile.rows == rows)
            .max_by_key(|tile| (tile.ctas_together(batch, limits), tile.stages))
    }

    /// CTAs that a multiprocessor runs at once.
    fn ctas_together(self, batch: usize, limits: Limits) -> u32 {
        let shared =
            u32::try_from(self.shared_bytes(batch)).unwrap_or(u32::MAX).saturating_add(RESERVED_SHARED);
        (limits.shared_bytes_per_multiprocessor / shared).clamp(1, THREADS_TOGETHER / THREADS)
    }

    /// Splits that an item of such a pass has: a span, so that fewer states go through memory, or one, so that more
    /// multiprocessors are busy; whichever takes less by the estimates above.
    fn item_splits<B: Backend>(self, args: &JointAttention<'_, B>, multiprocessors: u32) -> usize {
        let AttentionShape { q_heads, kv_heads, head_dim } = args.shape;
        let seconds = |splits: usize| {
            let item = args.split.saturating_mul(splits);
            // Keys for all blocks of rows: f64 counts them exactly enough.
            let (mut keys, mut state_bytes) = (0.0, 0.0);
            for sequence in args.pass.sequences() {
                let (rows, states) = (args.rows_of(sequence), sequence.seen.div_ceil(item));
                let blocks = rows.saturating_mul(q_heads / kv_heads.max(1)).div_ceil(self.rows);
                keys += blocks as f64 * kv_heads as f64 * sequence.seen as f64;
                if states > 1 {
                    let elements = q_heads as f64 * (head_dim + 2) as f64;
                    state_bytes += rows as f64 * states as f64 * elements * size_of::<f32>() as f64;
                }
            }
            let longest = item.min(args.pass.longest()) as f64;
            let rounds = (keys / (f64::from(multiprocessors.max(1)) * longest.max(1.0))).ceil();
            rounds * longest * head_dim as f64 * SECONDS_PER_KEY_ELEMENT
                + state_bytes * SECONDS_PER_STATE_BYTE
        };
        if seconds(SPAN) <= seconds(1) { SPAN } else { 1 }
    }
}

/// Elements of the workspace that [`Kernels::joint_attention`] needs for passes of up to `rows` rows whose
/// sequences see up to `longest` cached positions, with splits of `split` keys; none if that overflows.
pub fn attention_workspace_len(
    shape: AttentionShape,
    rows: usize,
    longest: usize,
    split: usize,
) -> Option<usize> {
    // A state of each split, and one of the slots: an element of every dimension, the maximum and the sum.
    let states = longest.div_ceil(split.max(1)).checked_add(1)?;
    rows.checked_mul(shape.q_heads)?.checked_mul(states)?.checked_mul(shape.head_dim.checked_add(2)?)
}

/// Operands of [`Kernels::joint_attention`].
#[derive(Debug)]
pub struct JointAttention<'a, B: Backend> {
    /// The pass.
    pub pass: &'a PassTables<B>,
    /// Whether its mask rows take part. Below the tail layers they do not: it is then the attention of the pass
    /// without its groups, whose rows are the candidates.
    pub masks: bool,
    /// q, k and v heads of every row, `[rows, (q_heads + 2 kv_heads) · head_dim]`, after
    /// [`norm_rope_append`](Kernels::norm_rope_append): of mask rows k and v are read, candidates' are in
    /// the cache. Rows after those of the pass are padding.
    pub qkv: View<'a, bf16>,
    /// The layer's cache.
    pub cache: PagedKv<'a>,
    /// `[rows, q_heads · head_dim]`; padding gets zeros.
    pub out: ViewMut<'a, bf16>,
    /// Natural logarithm of Σ exp(score), `[rows, q_heads]`; −∞ for padding.
    pub lse: Option<ViewMut<'a, f32>>,
    /// [`attention_workspace_len`] elements or more, aligned to 8 bytes; what it holds does not matter.
    pub workspace: ViewMut<'a, f32>,
    /// The heads: head_dim 64 or 128, up to 16 query heads a KV head.
    pub shape: AttentionShape,
    /// Keys of a split, a multiple of 64: [`DEFAULT_SPLIT`] unless measured. Part of the arithmetic: results
    /// with another split differ in rounding.
    pub split: usize,
    /// Device error word `[1]`, if there is one: bit 1 is set for a page id that is not in the cache, whose keys and
    /// values count as zeros; bit 8 for a sequence that sees more than the pass that the workspace was made for, as a
    /// captured launch can meet, whose rows are left out: zeros, and −∞ in `lse`.
    pub error: Option<ViewMut<'a, u32>>,
}

impl<B: Backend> JointAttention<'_, B> {
    /// Rows of a sequence.
    fn rows_of(&self, sequence: &SequenceSize) -> usize {
        sequence.candidates + if self.masks { sequence.masks } else { 0 }
    }
}

impl<B: Backend> Kernels<B> {
    /// softmax(q Kᵀ / √head_dim) V over what each row sees: candidate i the cached positions 0..=n + i, the
    /// rows of group k 0..=n + k and the slots of their own group.
    ///
    /// Products are of bf16 with f32 sums; weights are rounded to bf16 before they multiply V, and divided
    /// by the sum of what they were rounded to. What a row does not see has no influence on its bits, as
    /// long as V is finite where another row of the sequence sees it.
    ///
    /// # Errors
    ///
    /// [`KernelError`] if operands do not fit each other.
    ///
    /// # Example
    ///
    /// One candidate at position 0 sees itself alone, so its result is its V.
    ///
    /// ```
    /// use flexdraft::backend::{Simt, SimtOptions};
    /// use flexdraft::kernels::attention::{DEFAULT_SPLIT, JointAttention, attention_workspace_len};
    /// use flexdraft::kernels::{Kernels, KvStrides, PagedKv, Paging, PassTables};
    /// use flexdraft::layout::{AttentionShape, Pass, SequenceRows};
    /// use half::bf16;
    ///
    /// let kernels = Kernels::new(Simt::new(SimtOptions::default()));
    /// let (simt, stream) = (kernels.backend(), kernels.backend().stream());
    /// let shape = AttentionShape { q_heads: 1, kv_heads: 1, head_dim: 64 };
    /// let rows = SequenceRows { pages: &[0], start: 0, candidates: 1, groups: vec![], slots: 0 };
    /// let mut pass = PassTables::new(simt, &stream, 1, 1)?;
    /// let paging = Paging { pages: 1, page_size: 16 };
    /// pass.upload(simt, &stream, &Pass { sequences: vec![rows] }, paging)?;
    ///
    /// let qkv = vec![bf16::ONE; 3 * 64];
    /// let cache = vec![bf16::from_f32(0.5); 16 * 64];
    /// let mut out = vec![bf16::ZERO; 64];
    /// let strides = KvStrides::token_major(16, 1, 64);
    /// let mut workspace = vec![0u64; attention_workspace_len(shape, 1, 1, DEFAULT_SPLIT).unwrap()];
    /// kernels.joint_attention(&stream, &JointAttention {
    ///     pass: &pass,
    ///     masks: true,
    ///     qkv: stream.view(&qkv),
    ///     cache: PagedKv {
    ///         k: stream.view(&cache),
    ///         v: stream.view(&cache),
    ///         k_strides: strides,
    ///         v_strides: strides,
    ///     },
    ///     out: stream.view_mut(&mut out),
    ///     lse: None,
    ///     workspace: stream.view_mut(bytemuck::cast_slice_mut(&mut workspace)),
    ///     shape,
    ///     split: DEFAULT_SPLIT,
    ///     error: None,
    /// })?;
    /// assert_eq!(out, [bf16::from_f32(0.5); 64]);
    /// # Ok::<(), flexdraft::kernels::KernelError>(())
    /// ```
    pub fn joint_attention(
        &self,
        stream: &B::Stream,
        args: &JointAttention<'_, B>,
    ) -> Result<(), KernelError> {
        let AttentionShape { q_heads, kv_heads, head_dim } = args.shape;
        let limits = self.backend.limits();
        let (pass_rows, most_rows) = (
            if args.masks { args.pass.rows() } else { args.pass.candidates() },
            args.pass.sequences().iter().map(|sequence| args.rows_of(sequence)).max().unwrap_or(0),
        );
        let packed_rows = most_rows.saturating_mul(q_heads / kv_heads.max(1));
        let tile = Tile::choose(head_dim, packed_rows, args.pass.batch(), limits);
        let mut operands =
            Operands::new(tile.map_or("joint_attention", |tile| tile.kernel), self.backend.queue(stream));
        let stride = operands.qkv_cols(args.shape)?;
        let Some(tile) = tile else {
            return Err(operands.unsupported("batch", args.pass.batch(), "what fits shared memory"));
        };
        if args.split == 0 || !args.split.is_multiple_of(TILE_KEYS) {
            return Err(operands.unsupported("split", args.split, "multiples of 64"));
        }
        let max_splits = args.pass.longest().div_ceil(args.split);
        if max_splits > MAX_SPLITS {
            return Err(operands.unsupported("number of splits", max_splits, "up to 16380"));
        }
        let item_splits = tile.item_splits(args, limits.multiprocessors);
        let max_states = max_splits.div_ceil(item_splits);
        operands.i32("split", operands.product("split", &[args.split, item_splits])?)?;
        let rows = (args.qkv.len() / stride).max(pass_rows);
        let elements = operands.product("qkv", &[rows, stride])?;
        let qkv: *const u16 = operands.read("qkv", &args.qkv, elements, 16)?.cast();
        let (pass, page_table, page_table_stride) =
            args.pass.params(&self.backend, stream, &mut operands, rows, args.masks)?;
        let kv = KvShape { paging: args.pass.paging(), kv_heads, head_dim, page_table, page_table_stride };
        let cache = args.cache.params(&mut operands, &kv)?;
        let states = operands.product("workspace", &[rows, q_heads, max_states + 1])?;
        let partial_len = operands.product("workspace", &[states, head_dim])?;
        let needed = operands.product("workspace", &[states, head_dim + 2])?;
        let workspace = operands.workspace("workspace", &args.workspace, needed, 8)?;
        let lse = match &args.lse {
            Some(lse) => operands.write("lse", lse, operands.product("lse", &[rows, q_heads])?, 4)?,
            None => std::ptr::null_mut(),
        };
        let out = operands.product("out", &[rows, q_heads, head_dim])?;
        let params = FlexdraftAttentionParams {
            pass,
            cache,
            q: qkv,
            mask_k: qkv.wrapping_add(q_heads * head_dim),
            mask_v: qkv.wrapping_add((q_heads + kv_heads) * head_dim),
            out: operands.write("out", &args.out, out, 16)?.cast(),
            lse,
            partial_out: workspace,
            partial_stats: workspace.wrapping_add(partial_len),
            error: operands.error_word(args.error.as_ref())?,
            q_stride: stride as i64,
            mask_stride: stride as i64,
            scale_log2: std::f32::consts::LOG2_E / (head_dim as f32).sqrt(),
            q_heads: operands.i32("q heads", q_heads)?,
            kv_heads: operands.i32("kv heads", kv_heads)?,
            split: operands.i32("split", args.split)?,
            item_splits: item_splits as i32,
            max_states: operands.i32("states", max_states)?,
        };
        if q_heads > MAX_HEADS {
            return Err(operands.unsupported("number of query heads", q_heads, "up to 262140"));
        }
        let shared_bytes =
            operands.i32("shared memory", tile.shared_bytes(args.pass.batch()))?.cast_unsigned();
        // As many CTAs as run at once; each takes items until there are none.
        let together = tile.ctas_together(args.pass.batch(), limits);
        let ctas = if pass_rows == 0 { 0 } else { limits.multiprocessors.saturating_mul(together) };
        let grid = Grid { ctas: [ctas, 1, 1], threads: THREADS, shared_bytes };
        // SAFETY: the parameters are of this kernel and its operands were checked against their shapes; the
        // tables of the pass were checked when they were uploaded.
        unsafe { operands.launch(&self.backend, stream, grid, &params) }?;
        // Without states to merge only padding is left.
        if max_states <= 1 && rows == pass_rows {
            return Ok(());
        }
        let ctas = [params.pass.rows.cast_unsigned(), q_heads.div_ceil(HEADS_A_CTA) as u32, 1];
        let grid = Grid { ctas, threads: 128, shared_bytes: 0 };
        let few = max_states.div_ceil(SPAN) <= FEW_GROUPS;
        let merge = match (head_dim, few) {
            (64, true) => "attention_merge_d64_l5",
            (64, false) => "attention_merge_d64_l12",
            (_, true) => "attention_merge_d128_l5",
            (_, false) => "attention_merge_d128_l12",
        };
        // SAFETY: both kernels have the same parameters.
        unsafe { operands.of(merge).launch(&self.backend, stream, grid, &params) }
    }
}
