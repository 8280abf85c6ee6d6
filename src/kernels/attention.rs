//! Joint draft-and-verify attention over one layer of a paged KV cache.
//!
//! One family of kernels serves every step of FlexDraft. With candidates and groups, it is the joint attention of
//! parallel mode; without groups, the verification of sequential mode; with one candidate, autoregressive decoding; with
//! one group and no candidates, mask-token block attention. A row's result has the same bits in each mode, at any place
//! in any batch.
//!
//! A launch reads the visible K and V once for every block of rows (64 or 128 query heads of rows that share a KV
//! head). It divides keys among CTAs by splits or, if this gives enough work for the device, by spans of 4 splits. If
//! the keys of a sequence are divided into several parts, it writes and reads a softmax state in f32 for every row,
//! head and part. CTAs process the longest parts first. The division of keys changes no bit of the result.

use half::bf16;

use super::half_float::{Names, names};
use super::kv::{KvShape, PagedKv, page_division};
use super::limits;
use super::operands::{Grid, Operands};
use super::params::attention::FlexdraftAttentionParams;
use super::params::shapes::*;
use super::pass::{PassTables, SequenceSize};
use super::projections::Projections;
use super::scores::ScoreChanges;
use super::{HalfFloat, KernelError, Kernels};
use crate::layout::AttentionShape;
use crate::runtime::{Limits, Runtime, ViewMut};

/// The number of splits in a span.
const SPAN: usize = FLEXDRAFT_SPAN_SPLITS as usize;

/// The number of threads for which a multiprocessor has registers, at up to 256 registers per thread. Every compute
/// capability from 8.0 to 12.0 has 65536 registers per multiprocessor.
const THREADS_TOGETHER: u32 = 65536 / 256;

/// The shared memory that the system reserves for every CTA, in bytes.
const RESERVED_SHARED: u32 = 1024;

/// The number of heads that one CTA of the merging kernel computes.
const HEADS_A_CTA: usize = FLEXDRAFT_MERGE_WARPS as usize;

/// The largest number of groups of states that the small merging kernel can merge.
const FEW_GROUPS: usize = (1 << FLEXDRAFT_FEW_LEVELS) - 1;

/// The estimated time in seconds per element of a key on one multiprocessor, from which the division of keys among CTAs
/// is computed. The estimate is the same for every processor: 1.5 µs for a tile of 64 keys of 128 elements, which is
/// about the time to load the tile with the multiprocessor's share of the memory bandwidth, and about the time that its
/// tensor cores take for 128 rows.
const SECONDS_PER_KEY_ELEMENT: f64 = 1.5e-6 / (64.0 * 128.0);

/// The estimated time in seconds per byte of a softmax state, which is written and read, for all multiprocessors
/// together.
const SECONDS_PER_STATE_BYTE: f64 = 2.0 / 3e12;

/// The default number of keys per split, which keeps the multiprocessors of a large GPU busy at batch 1 and context 8k.
pub const DEFAULT_SPLIT: usize = FLEXDRAFT_DEFAULT_SPLIT as usize;

/// One variant of the attention kernel: an entry of `FLEXDRAFT_ATTENTION_TILES` in `cuda/common/shapes.h`. All variants
/// give the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tile {
    kernel: Names,
    head_dim: usize,
    /// The number of packed rows (a query head of a row each) that share each tile of K and V.
    rows: usize,
    /// Shared memory in bytes, without the plan of work items.
    shared: usize,
}

const fn tile(kernel: Names, head_dim: usize, rows: u32, shared: u32) -> Tile {
    Tile { kernel, head_dim, rows: rows as usize, shared: shared as usize }
}

/// All variants of the attention kernel. Variants with more rows read K and V less often; more stages hide more latency
/// and need more shared memory.
const TILES: [Tile; 7] = [
    tile(names!("joint_attention_d64_r64_s2"), 64, FLEXDRAFT_D64_R64_S2_ROWS, FLEXDRAFT_D64_R64_S2_SHARED),
    tile(names!("joint_attention_d64_r64_s3"), 64, FLEXDRAFT_D64_R64_S3_ROWS, FLEXDRAFT_D64_R64_S3_SHARED),
    tile(names!("joint_attention_d64_r128_s2"), 64, FLEXDRAFT_D64_R128_S2_ROWS, FLEXDRAFT_D64_R128_S2_SHARED),
    tile(names!("joint_attention_d64_r128_s3"), 64, FLEXDRAFT_D64_R128_S3_ROWS, FLEXDRAFT_D64_R128_S3_SHARED),
    tile(
        names!("joint_attention_d128_r64_s2"),
        128,
        FLEXDRAFT_D128_R64_S2_ROWS,
        FLEXDRAFT_D128_R64_S2_SHARED,
    ),
    tile(
        names!("joint_attention_d128_r64_s3"),
        128,
        FLEXDRAFT_D128_R64_S3_ROWS,
        FLEXDRAFT_D128_R64_S3_SHARED,
    ),
    tile(
        names!("joint_attention_d128_r128_s2"),
        128,
        FLEXDRAFT_D128_R128_S2_ROWS,
        FLEXDRAFT_D128_R128_S2_SHARED,
    ),
];

impl Tile {
    /// Returns the shared memory that a CTA of this variant needs, in bytes. The plan has two entries per two sequences
    /// of the batch, and one more.
    fn shared_bytes(self, batch: usize) -> usize {
        let entries = batch.div_ceil(2).saturating_mul(2).saturating_add(1);
        self.shared.saturating_add(entries.saturating_mul(size_of::<i32>()))
    }

    /// Returns the kernel variant for a batch: among the variants whose shared memory fits, the variants with 64 rows
    /// if no sequence has more, then the variant with most warps on a multiprocessor, then the variant with most
    /// stages.
    fn choose(head_dim: usize, packed_rows: usize, batch: usize, limits: Limits) -> Option<Self> {
        let fits = |tile: &Tile| tile.shared_bytes(batch) <= limits.shared_bytes_per_cta as usize;
        let usable = || TILES.into_iter().filter(|tile| tile.head_dim == head_dim).filter(fits);
        let enough = usable().map(|tile| tile.rows).filter(|&rows| rows >= packed_rows).min();
        let rows = enough.or(usable().map(|tile| tile.rows).max())?;
        usable()
            .filter(|tile| tile.rows == rows)
            .max_by_key(|tile| (tile.ctas_together(batch, limits), tile.shared))
    }

    /// Returns the number of CTAs of this variant that a multiprocessor runs at once.
    fn ctas_together(self, batch: usize, limits: Limits) -> u32 {
        let shared =
            u32::try_from(self.shared_bytes(batch)).unwrap_or(u32::MAX).saturating_add(RESERVED_SHARED);
        let most = THREADS_TOGETHER / FLEXDRAFT_ATTENTION_THREADS;
        (limits.shared_bytes_per_multiprocessor / shared).clamp(1, most)
    }

    /// Returns the number of splits per work item: the splits of a span, so that fewer states go through memory, or one
    /// split, so that more multiprocessors are busy. The estimates above decide which is faster.
    ///
    /// `sequences` has the rows of each sequence, and the number of cached positions that they see.
    fn item_splits(
        self,
        shape: AttentionShape,
        split: usize,
        sequences: impl Iterator<Item = (usize, usize)> + Clone,
        multiprocessors: u32,
    ) -> usize {
        let AttentionShape { q_heads, kv_heads, head_dim } = shape;
        let seconds = |splits: usize| {
            let item = split.saturating_mul(splits);
            // The number of keys that all blocks of rows read, and the number of keys of the longest work item. f64 is
            // exact enough for an estimate.
            let (mut keys, mut state_bytes, mut longest) = (0.0, 0.0, 1);
            for (rows, seen) in sequences.clone() {
                let states = seen.div_ceil(item);
                let blocks = rows.saturating_mul(q_heads / kv_heads.max(1)).div_ceil(self.rows);
                keys += blocks as f64 * kv_heads as f64 * seen as f64;
                longest = item.min(seen).max(longest);
                if states > 1 {
                    let elements = q_heads as f64 * (head_dim + 2) as f64;
                    state_bytes += rows as f64 * states as f64 * elements * size_of::<f32>() as f64;
                }
            }
            let rounds = (keys / (f64::from(multiprocessors.max(1)) * longest as f64)).ceil();
            rounds * longest as f64 * head_dim as f64 * SECONDS_PER_KEY_ELEMENT
                + state_bytes * SECONDS_PER_STATE_BYTE
        };
        if seconds(SPAN) <= seconds(1) { SPAN } else { 1 }
    }
}

/// Returns the number of elements of a workspace that is large enough for [`Kernels::joint_attention`] with any pass of
/// up to `rows` rows whose sequences see up to `longest` cached positions, with splits of `split` keys. `None` if the
/// number overflows.
///
/// Most passes need less: see [`Kernels::attention_workspace_len`].
pub fn attention_workspace_len(
    shape: AttentionShape,
    rows: usize,
    longest: usize,
    split: usize,
) -> Option<usize> {
    // A softmax state has head_dim elements, the maximum and the sum.
    let places = places(longest.div_ceil(split.max(1)));
    rows.checked_mul(shape.q_heads)?.checked_mul(places)?.checked_mul(shape.head_dim.checked_add(2)?)
}

/// Returns the number of softmax states per row and head for which the workspace has a place: one per state of cached
/// keys, and one for the slots of the row's group. A single state needs no place for slots, because its item adds the
/// slots.
const fn places(states: usize) -> usize {
    if states > 1 { states.saturating_add(1) } else { states }
}

/// Operands of [`Kernels::joint_attention`].
#[derive(Debug)]
pub struct JointAttention<'a, R: Runtime, T: HalfFloat = bf16> {
    /// The tables of the pass whose rows attend.
    pub pass: &'a PassTables<R>,
    /// Whether the mask rows of the pass take part in the attention. Layers below the tail have no mask rows, so there
    /// the kernel computes only the candidate rows.
    pub masks: bool,
    /// q heads of every row and k and v heads of mask rows, after [`norm_rope_append`](Kernels::norm_rope_append). The
    /// kernel reads the k and v of candidates in the cache.
    pub qkv: Projections<'a, T>,
    /// The KV cache of the layer.
    pub cache: PagedKv<'a, T>,
    /// Written by the kernel: the attention output of each row, `[rows, q_heads · head_dim]`: candidates, then mask rows,
    /// then padding, which gets zeros.
    pub out: ViewMut<'a, T>,
    /// Written by the kernel: the natural logarithm of Σ exp(score), `[rows, q_heads]`; −∞ for padding.
    pub lse: Option<ViewMut<'a, f32>>,
    /// Workspace of at least [`Kernels::attention_workspace_len`] elements, aligned to 8 bytes; its contents do not matter.
    pub workspace: ViewMut<'a, f32>,
    /// Numbers of heads, and head_dim: 64 or 128, with up to 16 query heads per KV head.
    pub shape: AttentionShape,
    /// Keys per split of a long sequence, a multiple of 64; [`DEFAULT_SPLIT`] unless measurements favour another. The
    /// split is part of the arithmetic: results with another split differ in rounding.
    pub split: usize,
    /// The model's changes to scores and softmax: window, soft cap and sinks.
    pub scores: ScoreChanges<'a>,
    /// The device error word `[1]`, optional. The kernel sets value 1 for a page id out of range, whose keys and values
    /// count as zeros, and value 8 for a sequence that sees more positions than the workspace allows, which can happen
    /// only in a captured launch; the sequence's rows then get zeros, and −∞ in `lse`.
    pub error: Option<ViewMut<'a, u32>>,
}

/// The division of a pass's keys among CTAs.
struct Division {
    /// The variant of the attention kernel; `None` if none with this head_dim fits a CTA.
    tile: Option<Tile>,
    /// The number of splits per work item.
    item_splits: usize,
}

impl Division {
    /// Returns the division of a pass's keys among CTAs, for its candidates alone if `masks` is false. `split` may be
    /// 0, which a launch refuses.
    fn new<R: Runtime>(
        pass: &PassTables<R>,
        masks: bool,
        shape: AttentionShape,
        split: usize,
        limits: Limits,
    ) -> Self {
        let rows_of = |sequence: &SequenceSize| sequence.candidates + if masks { sequence.masks } else { 0 };
        let sequences = pass.sequences().iter().map(|sequence| (rows_of(sequence), sequence.seen));
        let most_rows = sequences.clone().map(|(rows, _)| rows).max().unwrap_or(0);
        let packed_rows = most_rows.saturating_mul(shape.q_heads / shape.kv_heads.max(1));
        let tile = Tile::choose(shape.head_dim, packed_rows, pass.batch(), limits);
        let item_splits =
            tile.map_or(1, |tile| tile.item_splits(shape, split.max(1), sequences, limits.multiprocessors));
        Division { tile, item_splits }
    }
}

impl<R: Runtime> Kernels<R> {
    /// Returns the number of elements of the workspace that [`joint_attention`](Self::joint_attention) needs for `pass`,
    /// or for its candidates alone if `masks` is false, with `rows` rows of operands. `None` if the number overflows. A
    /// pass whose keys are divided into spans leaves a quarter of the states that [`attention_workspace_len`] counts.
    pub fn attention_workspace_len(
        &self,
        pass: &PassTables<R>,
        masks: bool,
        rows: usize,
        shape: AttentionShape,
        split: usize,
    ) -> Option<usize> {
        let division = Division::new(pass, masks, shape, split, self.runtime.limits());
        let item = split.checked_mul(division.item_splits)?;
        attention_workspace_len(shape, rows.max(pass.rows_with(masks)), pass.longest(), item)
    }

    /// Computes softmax(q Kᵀ / √head_dim) V over the keys that each row sees, with the changes of [`ScoreChanges`].
    /// Candidate i sees the cached positions 0 to n + i, n being the position of candidate 0. A row of group k sees the
    /// cached positions 0 to n + k, and the slots of its own group.
    ///
    /// Products have bf16 or f16 operands and f32 sums. Weights are rounded to the same type before they multiply V,
    /// and divided by the sum of the rounded weights, so a result is never larger than the largest V. Weights of scores
    /// beyond 10⁸ are inaccurate, because f32 rounds such scores too coarsely. Keys that a row does not see have no
    /// influence on its bits, as long as V is finite at keys that another row of the sequence sees.
    ///
    /// # Errors
    ///
    /// [`KernelError`] if operands do not fit each other.
    ///
    /// # Example
    ///
    /// One candidate at position 0 sees only itself, so its result is its V.
    ///
    /// ```
    /// use flexdraft::runtime::{Simt, SimtOptions};
    /// use flexdraft::kernels::attention::{DEFAULT_SPLIT, JointAttention, attention_workspace_len};
    /// use flexdraft::kernels::{Kernels, KvStrides, PagedKv, Paging, PassTables, ScoreChanges};
    /// use flexdraft::layout::{AttentionShape, Pass, SequenceRows};
    /// use half::bf16;
    ///
    /// let kernels = Kernels::new(Simt::new(SimtOptions::default()));
    /// let (simt, stream) = (kernels.runtime(), kernels.runtime().stream());
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
    ///     qkv: stream.view(&qkv).into(),
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
    ///     scores: ScoreChanges::default(),
    ///     error: None,
    /// })?;
    /// assert_eq!(out, [bf16::from_f32(0.5); 64]);
    /// # Ok::<(), flexdraft::kernels::KernelError>(())
    /// ```
    pub fn joint_attention<T: HalfFloat>(
        &self,
        stream: &R::Stream,
        args: &JointAttention<'_, R, T>,
    ) -> Result<(), KernelError> {
        let AttentionShape { q_heads, kv_heads, head_dim } = args.shape;
        let limits = self.runtime.limits();
        let pass_rows = args.pass.rows_with(args.masks);
        let Division { tile, item_splits } =
            Division::new(args.pass, args.masks, args.shape, args.split, limits);
        let mut operands = Operands::new(
            tile.map_or("joint_attention", |tile| T::name(tile.kernel)),
            self.runtime.queue(stream),
        );
        operands.qkv_cols(args.shape)?;
        let Some(tile) = tile else {
            return Err(operands.unsupported("batch", args.pass.batch(), "what fits shared memory"));
        };
        operands.within(limits::split(args.split))?;
        let max_splits = args.pass.longest().div_ceil(args.split);
        operands.within(limits::splits(max_splits))?;
        let item_keys = operands.product("split", &[args.split, item_splits])?;
        operands.i32("split", item_keys)?;
        // The states from position 0 on, and the states that the windows of a sequence's rows reach.
        let all_states = max_splits.div_ceil(item_splits);
        let max_states = args.scores.max_states(args.pass.candidates(), item_keys, all_states);
        let scores = args.scores.params(&mut operands, args.shape)?;
        let of_kinds = (args.pass.candidates(), pass_rows - args.pass.candidates());
        let out_rows = args.out.len() / operands.product("out", &[q_heads, head_dim])?;
        let heads = args.qkv.params(&mut operands, args.shape, of_kinds, out_rows)?;
        let rows = heads.rows;
        let (pass, page_table, page_table_stride) =
            args.pass.params(&self.runtime, stream, &mut operands, rows, args.masks)?;
        let kv = KvShape { paging: args.pass.paging(), kv_heads, head_dim, page_table, page_table_stride };
        let cache = args.cache.params(&mut operands, &kv)?;
        let places = places(max_states);
        let states = operands.product("workspace", &[rows, q_heads, places])?;
        let partial_len = operands.product("workspace", &[states, head_dim])?;
        let needed = operands.product("workspace", &[states, head_dim + 2])?;
        let workspace = operands.workspace("workspace", &args.workspace, needed, 8)?;
        let lse = match &args.lse {
            Some(lse) => operands.write("lse", lse, operands.product("lse", &[rows, q_heads])?, 4)?,
            None => std::ptr::null_mut(),
        };
        let out = operands.product("out", &[rows, q_heads, head_dim])?;
        let (page_magic, page_shift) = page_division(kv.paging.page_size);
        let params = FlexdraftAttentionParams {
            pass,
            cache,
            q: heads.q.address,
            mask_q: heads.mask_q.address,
            mask_k: heads.mask_k.address,
            mask_v: heads.mask_v.address,
            out: operands.write("out", &args.out, out, 16)?.cast(),
            lse,
            partial_out: workspace,
            partial_stats: workspace.wrapping_add(partial_len),
            sinks: scores.sinks,
            error: operands.error_word(args.error.as_ref())?,
            q_stride: heads.q.stride,
            mask_q_stride: heads.mask_q.stride,
            mask_k_stride: heads.mask_k.stride,
            mask_v_stride: heads.mask_v.stride,
            scale_log2: scores.scale_log2,
            cap_scale: scores.cap_scale,
            q_heads: operands.i32("q heads", q_heads)?,
            kv_heads: operands.i32("kv heads", kv_heads)?,
            head_ratio: operands.i32("q heads", q_heads / kv_heads)?,
            split: operands.i32("split", args.split)?,
            item_splits: item_splits as i32,
            max_states: operands.i32("states", max_states)?,
            places: operands.i32("states", places)?,
            candidates: operands.i32("rows", args.pass.candidates())?,
            window: scores.window,
            page_magic,
            page_shift,
            tables_change: i32::from(args.pass.written_on_device()),
        };
        operands.within(limits::query_heads(q_heads))?;
        let shared_bytes =
            operands.i32("shared memory", tile.shared_bytes(args.pass.batch()))?.cast_unsigned();
        // The grid has the number of CTAs that run at once; each CTA takes work items until none is left.
        let together = tile.ctas_together(args.pass.batch(), limits);
        let ctas = if pass_rows == 0 { 0 } else { limits.multiprocessors.saturating_mul(together) };
        let grid = Grid { ctas: [ctas, 1, 1], threads: FLEXDRAFT_ATTENTION_THREADS, shared_bytes };
        // SAFETY: the parameters are of this kernel and its operands were checked against their shapes; the
        // tables of the pass were checked when they were uploaded.
        unsafe { operands.launch(&self.runtime, stream, grid, &params) }?;
        // If no sequence has states to merge, the second launch computes only padding rows.
        if max_states <= 1 && rows == pass_rows {
            return Ok(());
        }
        let ctas = [params.pass.rows.cast_unsigned(), q_heads.div_ceil(HEADS_A_CTA) as u32, 1];
        let grid = Grid { ctas, threads: 32 * FLEXDRAFT_MERGE_WARPS, shared_bytes: 0 };
        let few = all_states.div_ceil(SPAN) <= FEW_GROUPS;
        let merge = match (head_dim, few) {
            (64, true) => names!("attention_merge_d64_l5"),
            (64, false) => names!("attention_merge_d64_l12"),
            (_, true) => names!("attention_merge_d128_l5"),
            (_, false) => names!("attention_merge_d128_l12"),
        };
        // SAFETY: both kernels have the same parameters.
        unsafe { operands.of(T::name(merge)).launch(&self.runtime, stream, grid, &params) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TILE_KEYS: usize = FLEXDRAFT_TILE_KEYS as usize;

    /// Returns the limits of a GPU with `kib` KiB of shared memory per CTA: 99 for compute capability 8.6 and 8.9, 163 for
    /// 8.0, and 227 for 9.0.
    fn gpu(kib: u32) -> Limits {
        let (bytes, all) = (kib << 10, (kib + 1) << 10);
        Limits { multiprocessors: 132, shared_bytes_per_cta: bytes, shared_bytes_per_multiprocessor: all }
    }

    #[test]
    fn tiles_are_those_that_their_names_say() {
        for tile in TILES {
            let rows = tile.rows * FLEXDRAFT_ROW_BYTES as usize + FLEXDRAFT_ITEM_BYTES as usize;
            let stages = ((tile.shared - rows) / (2 * tile.head_dim) - tile.rows) / (2 * TILE_KEYS);
            let name = format!("joint_attention_d{}_r{}_s{stages}", tile.head_dim, tile.rows);
            assert_eq!((tile.kernel.bf16, tile.kernel.f16), (&*name, &*format!("{name}_f16")));
            let exact = 2 * tile.head_dim * (tile.rows + stages * 2 * TILE_KEYS) + rows;
            assert_eq!(tile.shared, exact, "{name}");
        }
    }

    #[test]
    fn the_tile_of_a_pass() {
        // Batches of autoregressive steps, of a group of 16 slots, and of a joint pass with v = 15, with 4 query heads
        // per KV head.
        let packed = [4, 16 * 4, (16 + 16 * 16) * 4];
        let expected = [
            (99, 64, ["r64_s2", "r64_s2", "r128_s3"]),
            (163, 64, ["r64_s3", "r64_s3", "r128_s3"]),
            (227, 64, ["r64_s3", "r64_s3", "r128_s3"]),
            (99, 128, ["r64_s2", "r64_s2", "r128_s2"]),
            // Two CTAs with two stages each are preferred to one CTA with three stages.
            (163, 128, ["r64_s2", "r64_s2", "r128_s2"]),
            (227, 128, ["r64_s3", "r64_s3", "r128_s2"]),
        ];
        for (kib, head_dim, tiles) in expected {
            for (packed, tile) in packed.into_iter().zip(tiles) {
                let found = Tile::choose(head_dim, packed, 64, gpu(kib)).map(|tile| tile.kernel.bf16);
                let name = format!("joint_attention_d{head_dim}_{tile}");
                assert_eq!(found, Some(name.as_str()), "{kib} KiB, {packed} rows");
            }
        }
        // The plan of a batch takes shared memory as well: with 437 sequences, the variant with 128 rows does not fit
        // into 99 KiB.
        let of_batch = |batch| Tile::choose(128, 1088, batch, gpu(99)).map(|tile| tile.kernel.bf16);
        assert_eq!(of_batch(436), Some("joint_attention_d128_r128_s2"));
        assert_eq!(of_batch(437), Some("joint_attention_d128_r64_s2"));
        assert_eq!(Tile::choose(128, 1088, 1 << 20, gpu(227)), None);
        assert_eq!(Tile::choose(128, 1088, usize::MAX, gpu(227)), None);
        assert_eq!(Tile::choose(96, 4, 1, gpu(227)), None);
    }

    /// Returns the number of splits per work item, for a layer of Qwen3-8B on 132 multiprocessors.
    #[test]
    fn the_items_of_a_pass() {
        let shape = AttentionShape { q_heads: 32, kv_heads: 8, head_dim: 128 };
        let splits = |batch: usize, seen: usize, rows: usize| {
            let choose = |kib| {
                let tile = Tile::choose(128, rows * 4, batch, gpu(kib));
                tile.map(|tile| {
                    let sequences = std::iter::repeat_n((rows, seen), batch);
                    tile.item_splits(shape, DEFAULT_SPLIT, sequences, 132)
                })
            };
            let found = [99, 163, 227].map(choose);
            assert_eq!(found, [found[0]; 3], "tiles of as many rows divide keys alike");
            found[0]
        };
        // Each row has the batch, the context, and the splits per item of a plain step, of one group, of v = 4 with 5
        // groups, and of v = 15 with 16 groups.
        let expected = [
            // With 16 groups, spans win although they leave multiprocessors idle, because the states of single splits
            // would take longer.
            (1, 8192, [1, 1, 1, 4]),
            (2, 8192, [1, 1, 1, 4]),
            (4, 8192, [4, 4, 4, 4]),
            (5, 8192, [1, 1, 4, 4]),
            (16, 1024, [4, 4, 4, 4]),
            (64, 1024, [4, 4, 4, 4]),
        ];
        for (batch, context, expected) in expected {
            let found = [1, 16, 5 + 5 * 16, 16 + 16 * 16].map(|rows| splits(batch, context, rows));
            assert_eq!(found, expected.map(Some), "batch {batch}, context {context}");
        }
    }
}
