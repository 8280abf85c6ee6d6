//! The kernel that accepts draft tokens and draws the bonus token, for a whole batch.
//!
//! Greedy, `match` and `rejection` take one launch, and `block` takes two. The statistics of the rows come from
//! [`Kernels::sample`]. The scan over the draft tokens reads two logits per draft token, and whole rows of logits only
//! at the position where it stops. The minimum traffic is therefore two rows per sequence (with `block`: the rows of
//! every draft token). The kernel does not read chunks of the vocabulary in which truncation keeps no id
//! ([`Accept::target_partials`]).
//!
//! The kernels decide as [`crate::acceptance`] does, with the same random numbers. The target's distribution p and the
//! draft's distribution q are the distributions that tokens are drawn from, after warping. A draft token passes if its
//! random number is strictly below the threshold; ties go to the lowest id; if p is nowhere above q, the bonus token is
//! drawn from p itself.

use std::mem::size_of;
use std::ptr;

use cudarc::driver::{DeviceRepr, ValidAsZeroBits};

use super::limits;
use super::operands::{Grid, Operands};
use super::params::acceptance::{
    FLEXDRAFT_ACCEPT_CHUNK, FLEXDRAFT_DRAFT_CERTAIN, FLEXDRAFT_DRAFT_CHAINED, FLEXDRAFT_MAX_DRAFTS,
    FLEXDRAFT_RULE_BLOCK, FLEXDRAFT_RULE_MATCH, FLEXDRAFT_RULE_REJECTION, FlexdraftAcceptParams,
    FlexdraftVerdict, FlexdraftVerify,
};
use super::params::shapes::{FLEXDRAFT_ACCEPT_SHARED, FLEXDRAFT_ACCEPT_THREADS, FLEXDRAFT_BLOCK_SHARES};
use super::sampling::{Logit, RowStats, fault_of_code, workspace_len};
use super::{KernelError, Kernels};
use crate::acceptance::Rule;
use crate::layout::GroupSet;
use crate::logits::LogitsFault;
use crate::runtime::{Element, Runtime, View, ViewMut};

/// The largest number of draft tokens of a sequence.
pub const MAX_DRAFTS: usize = FLEXDRAFT_MAX_DRAFTS as usize;

/// The largest number of tokens that a sequence commits in a step: the draft tokens and the bonus token.
pub const MAX_COMMITTED: usize = MAX_DRAFTS + 1;

/// One sequence whose draft tokens are verified: `FlexdraftVerify` of `cuda/acceptance/params.h`.
///
/// d_1 to d_v are the draft tokens. Row `first_target + i` of the target has p_i, the distribution of the token after d_i,
/// for i = 0 to v. Row `first_draft + j − 1` of the draft has q_j, the distribution that d_j was drawn from. Token
/// `first_token + i − 1` is d_i. The kernel reports rows and tokens that do not exist.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Verify(FlexdraftVerify);

// SAFETY: six words of 8 bytes without padding (48 bytes, as asserted in the header), valid for any bits.
unsafe impl bytemuck::Zeroable for Verify {}
// SAFETY: as above.
unsafe impl bytemuck::Pod for Verify {}
// SAFETY: it is plain data, as the kernels declare it.
unsafe impl DeviceRepr for Verify {}
// SAFETY: every field may be zero.
unsafe impl ValidAsZeroBits for Verify {}
impl Element for Verify {}

/// The arguments of [`Verify::new`].
#[derive(Clone, Copy, Debug)]
pub struct VerifySequence {
    /// The acceptance rule. At temperature 0, where all rules give the same result, it must be [`Rule::Match`].
    pub rule: Rule,
    /// The seed of the request, the key of its random numbers.
    pub seed: u64,
    /// n, the position of candidate 0, the bonus token of the previous step.
    pub position: usize,
    /// v, the number of draft tokens, up to [`MAX_DRAFTS`]. With 0, the bonus token is the token that
    /// [`Kernels::sample`] drew.
    pub drafts: usize,
    /// The row of the target's logits that gives p_0, the distribution of the first draft token.
    pub first_target: usize,
    /// The row of the draft's logits that gives q_1, the distribution that d_1 was drawn from. Without it, q_j(d_j) = 1
    /// for every j.
    pub first_draft: Option<usize>,
    /// The index of the first draft token d_1 in [`Accept::tokens`].
    pub first_token: usize,
    /// The accepted lengths for which the pass has a mask group.
    pub groups: GroupSet,
}

impl Verify {
    /// Returns the description of a sequence in the form that the kernel reads.
    ///
    /// # Errors
    ///
    /// [`KernelError::Unsupported`] for more than [`MAX_DRAFTS`] tokens, [`KernelError::Overflow`] for an
    /// index beyond 2³¹.
    pub fn new(sequence: &VerifySequence) -> Result<Self, KernelError> {
        const KERNEL: &str = "accept";
        let index = |what, value: usize| {
            i32::try_from(value).map_err(|_| KernelError::Overflow { kernel: KERNEL, what })
        };
        let drafts = index("number of drafts", sequence.drafts)?;
        limits::drafts(sequence.drafts).map_err(|limit| KernelError::exceeded(KERNEL, limit))?;
        Ok(Verify(FlexdraftVerify {
            seed: sequence.seed,
            groups: sequence.groups.bits(),
            position: index("position", sequence.position)?.into(),
            rule: match sequence.rule {
                Rule::Match => FLEXDRAFT_RULE_MATCH,
                Rule::Rejection => FLEXDRAFT_RULE_REJECTION,
                Rule::Block => FLEXDRAFT_RULE_BLOCK,
            } as i32,
            drafts,
            first_target: index("first target row", sequence.first_target)?,
            first_draft: sequence
                .first_draft
                .map_or(Ok(FLEXDRAFT_DRAFT_CERTAIN), |row| index("first draft row", row))?,
            first_token: index("first token", sequence.first_token)?,
            first_draft_stats: sequence.first_draft.map_or(Ok(0), |row| index("first draft row", row))?,
        }))
    }

    /// Returns the same sequence with a draft that has a chain. Row `first` of the [chosen ids](DraftDistributions::chosen)
    /// and of the statistics gives q_1.
    ///
    /// # Errors
    ///
    /// [`KernelError::Overflow`] for a row beyond 2³¹.
    pub fn with_chained_draft_at(mut self, first: usize) -> Result<Self, KernelError> {
        self.0.first_draft = FLEXDRAFT_DRAFT_CHAINED;
        self.with_draft_stats_at(first)
    }

    /// Returns the same sequence with the statistics of q_1 in row `first`, instead of in the row of its logits.
    ///
    /// # Errors
    ///
    /// [`KernelError::Overflow`] for a row beyond 2³¹.
    pub fn with_draft_stats_at(mut self, first: usize) -> Result<Self, KernelError> {
        let overflow = KernelError::Overflow { kernel: "accept", what: "first row of draft statistics" };
        self.0.first_draft_stats = i32::try_from(first).map_err(|_| overflow)?;
        Ok(self)
    }
}

/// The result of verifying the draft tokens of one sequence: `FlexdraftVerdict` of `cuda/acceptance/params.h`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Verdict {
    /// a, the number of accepted draft tokens; −1 if the sequence's rows or tokens do not exist, and then no other field
    /// is set.
    pub accepted: i32,
    /// The bonus token, at position n + a + 1. After a fault: some id of the vocabulary.
    pub bonus: i32,
    /// The probability p_a of the bonus token, after warping.
    pub probability: f32,
    /// The rank of mask group a, which makes the next draft, among the groups of the pass; −1 if the pass has no such
    /// group, and a drafting pass is needed.
    pub group: i32,
    /// n + a + 1, the number of positions whose K and V stay in the cache.
    pub cached_length: i64,
    /// The code of the fault of the target's row a, which [`logits_fault`](Self::logits_fault) returns; 0 if there is
    /// none. After a fault, a is the first faulty row of the rows that the rule reached: d_1 to d_a stand, and there is
    /// no bonus token.
    pub fault: i32,
    /// Unused; 0.
    pub unused: i32,
}

impl Verdict {
    /// Returns the fault of the target's row a, if there is one.
    pub fn logits_fault(&self) -> Option<LogitsFault> {
        fault_of_code(self.fault)
    }
}

const _: () = assert!(size_of::<Verdict>() == size_of::<FlexdraftVerdict>());

// SAFETY: 32 bytes without padding, valid for any bits.
unsafe impl bytemuck::Zeroable for Verdict {}
// SAFETY: as above.
unsafe impl bytemuck::Pod for Verdict {}
// SAFETY: it is plain data, as the kernels declare it.
unsafe impl DeviceRepr for Verdict {}
// SAFETY: every field may be zero.
unsafe impl ValidAsZeroBits for Verdict {}
impl Element for Verdict {}

/// Rows of logits and their statistics, `[rows, stride]` and `[rows]`, as [`Kernels::sample`] left them. A draft's
/// logits may have other rows than their statistics: [`Verify::with_draft_stats_at`].
#[derive(Debug)]
pub struct SampledRows<'a, L> {
    /// The logits from which tokens were drawn.
    pub logits: View<'a, L>,
    /// The statistics of the rows of `logits`.
    pub stats: View<'a, RowStats>,
}

/// The chosen ids of drafts with a chain, and their logits, as [`Kernels::chain_walk`] left them. Every other id has the
/// logit −∞.
#[derive(Debug)]
pub struct ChosenRows<'a> {
    /// K: the number of chosen ids per row, 1 to [`MAX_CHOSEN`](super::chain::MAX_CHOSEN).
    pub count: usize,
    /// The chosen ids, `[rows, count]`.
    pub ids: View<'a, i32>,
    /// The chained logits of the chosen ids, `[rows, count]`.
    pub logits: View<'a, f32>,
}

/// The distributions that drafts were drawn from: rows of logits, or the chosen ids of [drafts with a
/// chain](Verify::with_chained_draft_at), or both for different sequences.
#[derive(Debug)]
pub struct DraftDistributions<'a, L> {
    /// Rows of logits, `[rows, stride]`. Without chosen ids, there are at least as many rows as statistics.
    pub logits: Option<View<'a, L>>,
    /// Rows of chosen ids, one for each row of `stats`.
    pub chosen: Option<ChosenRows<'a>>,
    /// The statistics of the draft rows.
    pub stats: View<'a, RowStats>,
}

/// The operands of [`Kernels::accept`].
#[derive(Debug)]
pub struct Accept<'a, L> {
    /// The number of token ids, 1 to 2²⁰.
    pub vocab: usize,
    /// Elements from one row of logits to the next: a multiple of 8, at least `vocab`.
    pub stride: usize,
    /// The sequences whose draft tokens are verified, `[batch]`.
    pub sequences: View<'a, Verify>,
    /// Whether any of the sequences has [`Rule::Block`], which needs a second launch.
    pub any_block: bool,
    /// The draft tokens of all sequences.
    pub tokens: View<'a, i32>,
    /// The rows of the target's logits, with their statistics.
    pub target: SampledRows<'a, L>,
    /// The workspace of the [`Kernels::sample`] call that wrote the target's statistics without a calibration, as that
    /// call left it. With it, the kernel does not read chunks of the vocabulary in which no id of p is kept. With `None`,
    /// it reads every id, with the same result. The workspace of any other call gives an unspecified result within the
    /// vocabulary.
    pub target_partials: Option<View<'a, f32>>,
    /// The distributions that the drafts were drawn from, if any sequence has them.
    pub draft: Option<DraftDistributions<'a, L>>,
    /// Workspace of at least [`accept_workspace_len`] elements; its contents do not matter.
    pub workspace: ViewMut<'a, f32>,
    /// Counters of finished CTAs, `[batch]`, zeros before the first launch. Every launch leaves zeros.
    pub arrived: ViewMut<'a, u32>,
    /// Written by the kernel: the verdict of each sequence, `[batch]`.
    pub verdicts: ViewMut<'a, Verdict>,
    /// Written by the kernel: d_1 to d_a, the bonus token unless there is a fault, then −1, `[batch, MAX_COMMITTED]`.
    pub committed: ViewMut<'a, i32>,
    /// The device error word `[1]`, optional. The kernel sets value 16 for a sequence whose rows or tokens do not
    /// exist.
    pub error: Option<ViewMut<'a, u32>>,
}

/// Returns the number of elements of [`Accept::workspace`] for a batch; `None` if it overflows.
pub fn accept_workspace_len(batch: usize, vocab: usize) -> Option<usize> {
    let chunks = vocab.div_ceil(FLEXDRAFT_ACCEPT_CHUNK as usize);
    // The workspace has, per chunk of the vocabulary, a sum for every draft token, and the best id with its value.
    batch.checked_mul(chunks)?.checked_mul(MAX_COMMITTED + 2)
}

impl<R: Runtime> Kernels<R> {
    /// Decides for every sequence how many draft tokens are accepted, and which bonus token follows them.
    ///
    /// # Errors
    ///
    /// [`KernelError`] if operands do not fit each other.
    ///
    /// # Example
    ///
    /// ```
    /// use bytemuck::Zeroable;
    /// use flexdraft::acceptance::Rule;
    /// use flexdraft::runtime::{Simt, SimtOptions};
    /// use flexdraft::kernels::Kernels;
    /// use flexdraft::kernels::acceptance::{
    ///     Accept, MAX_COMMITTED, SampledRows, Verdict, Verify, VerifySequence, accept_workspace_len,
    /// };
    /// use flexdraft::kernels::sampling::RowStats;
    /// use flexdraft::layout::GroupSet;
    ///
    /// let kernels = Kernels::new(Simt::new(SimtOptions::default()));
    /// let stream = kernels.runtime().stream();
    /// // Greedy: the target chose token 3 after c_0 and token 1 after d_1.
    /// let mut stats = [RowStats::zeroed(); 2];
    /// (stats[0].token, stats[1].token) = (3, 1);
    /// let logits = vec![0.0f32; 2 * 8];
    /// let sequence = Verify::new(&VerifySequence {
    ///     rule: Rule::Match,
    ///     seed: 0,
    ///     position: 40,
    ///     drafts: 1,
    ///     first_target: 0,
    ///     first_draft: None,
    ///     first_token: 0,
    ///     groups: GroupSet::all(1),
    /// })?;
    /// let mut workspace = vec![0u64; accept_workspace_len(1, 8).unwrap()];
    /// let (mut verdicts, mut committed) = ([Verdict::zeroed()], [0; MAX_COMMITTED]);
    /// kernels.accept(&stream, &Accept {
    ///     vocab: 8,
    ///     stride: 8,
    ///     sequences: stream.view(&[sequence]),
    ///     any_block: false,
    ///     tokens: stream.view(&[3]),
    ///     target: SampledRows { logits: stream.view(&logits), stats: stream.view(&stats) },
    ///     target_partials: None,
    ///     draft: None,
    ///     workspace: stream.view_mut(bytemuck::cast_slice_mut(&mut workspace)),
    ///     arrived: stream.view_mut(&mut [0]),
    ///     verdicts: stream.view_mut(&mut verdicts),
    ///     committed: stream.view_mut(&mut committed),
    ///     error: None,
    /// })?;
    /// assert_eq!((verdicts[0].accepted, verdicts[0].bonus, verdicts[0].group), (1, 1, 1));
    /// assert_eq!(committed[..3], [3, 1, -1]);
    /// # Ok::<(), flexdraft::kernels::KernelError>(())
    /// ```
    pub fn accept<L: Logit>(&self, stream: &R::Stream, args: &Accept<'_, L>) -> Result<(), KernelError> {
        let names = L::KERNELS;
        let mut operands = Operands::new(names.accept, self.runtime.queue(stream));
        operands.within(limits::vocabulary(args.vocab))?;
        operands.within(limits::stride(args.stride, args.vocab))?;
        let batch = args.sequences.len();
        let chunks = args.vocab.div_ceil(FLEXDRAFT_ACCEPT_CHUNK as usize);
        let overflow = KernelError::Overflow { kernel: names.accept, what: "workspace" };
        let needed = accept_workspace_len(batch, args.vocab).ok_or(overflow)?;
        let workspace = operands.workspace("workspace", &args.workspace, needed, 8)?;
        let target_rows = args.target.stats.len();
        let target = operands.product("target", &[target_rows, args.stride])?;
        let (mut draft, mut draft_stats) = (ptr::null(), ptr::null());
        let (mut draft_ids, mut draft_chosen, mut draft_count) = (ptr::null(), ptr::null(), 0);
        let (mut draft_rows, mut draft_stats_rows) = (0, 0);
        if let Some(DraftDistributions { logits, chosen, stats }) = &args.draft {
            draft_stats_rows = stats.len();
            draft_stats = operands.read("draft stats", stats, draft_stats_rows, 4)?.cast();
            if let Some(ChosenRows { count, ids, logits }) = chosen {
                operands.within(limits::chosen(*count))?;
                draft_count = *count;
                let elements = operands.product("draft ids", &[draft_stats_rows, *count])?;
                draft_ids = operands.read("draft ids", ids, elements, 4)?;
                draft_chosen = operands.read("draft logits", logits, elements, 4)?;
            }
            if let Some(logits) = logits {
                let least = if chosen.is_none() { draft_stats_rows } else { 0 };
                draft_rows = least.max(logits.len() / args.stride);
                let elements = operands.product("draft", &[draft_rows, args.stride])?;
                draft = operands.read("draft", logits, elements, 16)?.cast();
            }
        }
        let partials = workspace_len(target_rows, args.vocab, false)?;
        let committed = operands.product("committed", &[batch, MAX_COMMITTED])?;
        let params = FlexdraftAcceptParams {
            sequences: operands.read("sequences", &args.sequences, batch, 8)?.cast(),
            tokens: operands.read("tokens", &args.tokens, args.tokens.len(), 4)?,
            target: operands.read("target", &args.target.logits, target, 16)?.cast(),
            target_stats: operands.read("target stats", &args.target.stats, target_rows, 4)?.cast(),
            target_partials: match &args.target_partials {
                Some(view) => operands.read("target partials", view, partials, 4)?,
                None => ptr::null(),
            },
            draft,
            draft_stats,
            draft_ids,
            draft_chosen,
            sums: workspace,
            best: workspace.wrapping_add(batch * MAX_COMMITTED * chunks),
            arrived: operands.write("arrived", &args.arrived, batch, 4)?,
            verdicts: operands.write("verdicts", &args.verdicts, batch, 8)?.cast(),
            committed: operands.write("committed", &args.committed, committed, 4)?,
            error: operands.error_word(args.error.as_ref())?,
            logit_stride: args.stride as i64,
            batch: operands.i32("batch", batch)?,
            vocab: operands.i32("vocabulary", args.vocab)?,
            chunks: operands.i32("chunks", chunks)?,
            target_rows: operands.i32("target rows", target_rows)?,
            draft_rows: operands.i32("draft rows", draft_rows)?,
            draft_stats_rows: operands.i32("rows of draft statistics", draft_stats_rows)?,
            token_count: operands.i32("tokens", args.tokens.len())?,
            draft_count: operands.i32("chosen ids", draft_count)?,
        };
        operands.within(limits::batch(batch))?;
        let (threads, shared_bytes) = (FLEXDRAFT_ACCEPT_THREADS, FLEXDRAFT_ACCEPT_SHARED);
        let grid = |z| Grid { ctas: [chunks as u32, batch as u32, z], threads, shared_bytes };
        if args.any_block {
            operands = operands.of(names.block_sums);
            // SAFETY: the parameters are of this kernel and its operands were checked against their shapes;
            // rows and tokens of sequences are checked by the kernel.
            unsafe { operands.launch(&self.runtime, stream, grid(FLEXDRAFT_BLOCK_SHARES), &params) }?;
            operands = operands.of(names.accept);
        }
        // SAFETY: as above.
        unsafe { operands.launch(&self.runtime, stream, grid(1), &params) }
    }
}
