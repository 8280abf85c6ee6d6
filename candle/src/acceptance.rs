//! Acceptance of draft tokens, and the selection of the next drafts.

use candle_core::{DType, Result, Tensor};
use flexdraft::kernels::acceptance::{
    Accept as Launch, ChosenRows, DraftDistributions as LaunchedDrafts, MAX_COMMITTED, SampledRows, Verdict,
    Verify, accept_workspace_len,
};
use flexdraft::kernels::sampling::{Logit, RowStats};
use flexdraft::kernels::selection::{Draft, FollowVerdicts, SelectDrafts};

use crate::operands::Elements::{self, F32, Index, Logits};
use crate::operands::{ANY, dim, of_logits};
use crate::pass::PassTables;
use crate::processor::{Kernels, launch};

/// The distributions that drafts were drawn from: rows of logits, or the chosen ids of drafts with a chain, or both for
/// different sequences.
#[derive(Clone, Copy, Debug)]
pub struct DraftDistributions<'a> {
    /// Rows of logits `[rows, stride]`, of the type and the stride of the target's logits. Without chosen ids, there are at
    /// least as many rows as statistics.
    pub logits: Option<&'a Tensor>,
    /// The chosen ids of each row of `stats`, and their logits after [`chain_walk`](Kernels::chain_walk), `[rows, K]` of
    /// i32 and of f32.
    pub chosen: Option<(&'a Tensor, &'a Tensor)>,
    /// The statistics of the draft rows, a table of [`RowStats`].
    pub stats: &'a Tensor,
}

/// The operands of [`Kernels::accept`].
#[derive(Clone, Copy, Debug)]
pub struct Accept<'a> {
    /// The number of token ids, 1 to 2²⁰.
    pub vocab: usize,
    /// The sequences whose draft tokens are verified, a [`table`](crate::table()) of [`Verify`].
    pub sequences: &'a Tensor,
    /// Whether any of the sequences has the rule `block`, which needs a second launch.
    pub any_block: bool,
    /// The draft tokens of all sequences, `[tokens]`.
    pub tokens: &'a Tensor,
    /// The rows of the target's logits, `[rows, stride]`, f32, bf16 or f16.
    pub target: &'a Tensor,
    /// The statistics of the target's rows, a table of [`RowStats`] from [`sample`](Kernels::sample).
    pub target_stats: &'a Tensor,
    /// The partial results of the call of [`sample`](Kernels::sample) that gave the target's statistics without a
    /// calibration. With them, the kernel reads less; the result is the same.
    pub target_partials: Option<&'a Tensor>,
    /// The distributions that the drafts were drawn from, if any sequence has them.
    pub draft: Option<DraftDistributions<'a>>,
}

/// The results of [`Kernels::accept`].
#[derive(Clone, Debug)]
pub struct Accepted {
    /// The verdict of each sequence, a table of [`Verdict`].
    pub verdicts: Tensor,
    /// The accepted tokens of each sequence, the bonus token unless there is a fault, then −1, `[batch, 64]` of i32.
    pub committed: Tensor,
}

/// The results of [`Kernels::select_drafts`].
#[derive(Clone, Debug)]
pub struct Selected {
    /// The bonus token of each sequence that drafts, `[drafts]` of i32.
    pub bonus: Tensor,
    /// The position of candidate 0 in the step that will verify each draft, `[drafts]` of i32.
    pub starts: Tensor,
    /// The source of each draft row, a row of the pass or of the logits, `[rows]` of i32; −1 if the accepted length has no
    /// mask group, or if no sequence has the row.
    pub sources: Tensor,
    /// The row of each draft row's logits, `[rows]` of i32; −1 as in `sources`.
    pub draft_rows: Tensor,
}

impl Kernels {
    /// Decides for every sequence how many draft tokens are accepted, and which bonus token follows them. A sequence whose
    /// rows or tokens do not exist gives the fault [`Row`](flexdraft::kernels::Fault::Row).
    ///
    /// # Errors
    ///
    /// An [`Error`](crate::Error) if operands do not fit each other.
    pub fn accept(&self, args: &Accept<'_>) -> Result<Accepted> {
        of_logits!(args.target, self.accept_rows(args))
    }

    fn accept_rows<L: Logit>(&self, args: &Accept<'_>) -> Result<Accepted> {
        let mut operands = self.operands("accept");
        let (batch, rows, stride) = (dim(args.sequences, 0), dim(args.target, 0), dim(args.target, 1));
        let sequences = operands.read("sequences", args.sequences, Elements::of::<Verify>(), &[ANY])?;
        let tokens = operands.read("tokens", args.tokens, Index, &[ANY])?;
        let target = operands.read("target", args.target, Logits, &[ANY, ANY])?;
        let target_stats =
            operands.read("target stats", args.target_stats, Elements::of::<RowStats>(), &[rows])?;
        let target_partials =
            operands.optional("target partials", args.target_partials, F32, &[rows, ANY])?;
        let draft = args.draft.map(|DraftDistributions { logits, chosen, stats }| -> Result<_> {
            let rows = dim(stats, 0);
            let stats = operands.read("draft stats", stats, Elements::of::<RowStats>(), &[ANY])?;
            let chosen = chosen.map(|(ids, logits)| -> Result<_> {
                let count = dim(ids, 1);
                let ids = operands.read("draft ids", ids, Index, &[rows, ANY])?;
                Ok((count, ids, operands.read("draft logits", logits, F32, &[rows, count])?))
            });
            let of_target = match args.target.dtype() {
                DType::BF16 => Elements::Bf16,
                DType::F16 => Elements::F16,
                _ => F32,
            };
            Ok((operands.optional("draft", logits, of_target, &[ANY, stride])?, chosen.transpose()?, stats))
        });
        let draft = draft.transpose()?;
        // The kernel refuses a vocabulary that is larger than the stride.
        let workspace = operands.workspace(accept_workspace_len(batch, args.vocab.min(stride)))?;
        let (arrived, _) = operands.output("arrived", DType::U32, &[batch])?;
        let (verdicts, verdict_table) = operands.output_table::<Verdict>("verdicts", batch)?;
        let (committed, committed_tokens) =
            operands.output("committed", DType::I32, &[batch, MAX_COMMITTED])?;
        let error = self.faults(&mut operands)?;
        launch!(self, operands, |loaded, stream, memory| {
            loaded.accept(
                stream,
                &Launch::<L> {
                    vocab: args.vocab,
                    stride,
                    sequences: memory.view(sequences),
                    any_block: args.any_block,
                    tokens: memory.view(tokens),
                    target: SampledRows { logits: memory.view(target), stats: memory.view(target_stats) },
                    target_partials: memory.optional(target_partials),
                    draft: draft.map(|(logits, chosen, stats)| LaunchedDrafts {
                        logits: memory.optional(logits),
                        chosen: chosen.map(|(count, ids, logits)| ChosenRows {
                            count,
                            ids: memory.view(ids),
                            logits: memory.view(logits),
                        }),
                        stats: memory.view(stats),
                    }),
                    workspace: memory.view_mut(workspace),
                    arrived: memory.view_mut(arrived),
                    verdicts: memory.view_mut(verdicts),
                    committed: memory.view_mut(committed),
                    error: Some(memory.view_mut(error)),
                },
            )
        })?;
        Ok(Accepted { verdicts: verdict_table, committed: committed_tokens })
    }

    /// Selects, for every sequence that drafts, the rows of its mask group, its bonus token and its start position, as its
    /// accepted length requires. `drafts` is a [`table`](crate::table()) of [`Draft`], which together have `rows` draft rows;
    /// `verdicts` is a table of [`Verdict`] from [`accept`](Self::accept). A draft whose rows or verdict do not exist gives
    /// the fault [`Row`](flexdraft::kernels::Fault::Row).
    ///
    /// # Errors
    ///
    /// An [`Error`](crate::Error) if operands do not fit each other.
    pub fn select_drafts(&self, drafts: &Tensor, verdicts: &Tensor, rows: usize) -> Result<Selected> {
        let mut operands = self.operands("select_drafts");
        let count = dim(drafts, 0);
        let drafts = operands.read("drafts", drafts, Elements::of::<Draft>(), &[ANY])?;
        let verdicts = operands.read("verdicts", verdicts, Elements::of::<Verdict>(), &[ANY])?;
        let (bonus, bonus_tokens) = operands.output("bonus", DType::I32, &[count])?;
        let (starts, start_positions) = operands.output("starts", DType::I32, &[count])?;
        let (source_slot, sources) = operands.output_indices("sources", rows)?;
        let (row_slot, draft_rows) = operands.output_indices("draft rows", rows)?;
        let error = self.faults(&mut operands)?;
        launch!(self, operands, |loaded, stream, memory| {
            loaded.select_drafts(
                stream,
                &SelectDrafts {
                    drafts: memory.view(drafts),
                    verdicts: memory.view(verdicts),
                    bonus: memory.view_mut(bonus),
                    starts: memory.view_mut(starts),
                    sources: memory.view_mut(source_slot),
                    draft_rows: memory.view_mut(row_slot),
                    error: Some(memory.view_mut(error)),
                },
            )
        })?;
        Ok(Selected { bonus: bonus_tokens, starts: start_positions, sources, draft_rows })
    }

    /// Moves the mask group of every sequence of a drafting pass to the sequence's accepted length. The pass has one group
    /// per sequence and no candidates, each laid out for the largest possible accepted length. `sequences` `[batch]` is the
    /// index of each sequence's verdict in `verdicts`. A sequence without a verdict, or with an accepted length beyond its
    /// layout, gives the fault [`Row`](flexdraft::kernels::Fault::Row) and does not move.
    ///
    /// # Errors
    ///
    /// An [`Error`](crate::Error) if operands do not fit each other.
    pub fn follow_verdicts(
        &self,
        pass: &mut PassTables,
        sequences: &Tensor,
        verdicts: &Tensor,
    ) -> Result<()> {
        let mut operands = self.operands("follow_verdicts");
        pass.check(&operands)?;
        let sequences = operands.read("sequences", sequences, Index, &[ANY])?;
        let verdicts = operands.read("verdicts", verdicts, Elements::of::<Verdict>(), &[ANY])?;
        let error = self.faults(&mut operands)?;
        launch!(self, operands, |loaded, stream, memory| {
            loaded.follow_verdicts(
                stream,
                FollowVerdicts {
                    pass: pass.on_mut(loaded)?,
                    sequences: memory.view(sequences),
                    verdicts: memory.view(verdicts),
                    error: Some(memory.view_mut(error)),
                },
            )
        })
    }
}
