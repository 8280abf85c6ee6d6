//! Sampling: calibration or edits of logits, warping, and the draw.

use candle_core::{DType, Result, Tensor};
use flexdraft::kernels::sampling::{
    Calibration as LaunchedCalibration, EditTables, Edits, Logit, LogitEdit, LogitRows, RowEdits,
    RowSampling, RowStats, Sample as Launch, workspace_len,
};

use crate::error::refused;
use crate::operands::Elements::{self, F32, Index, Logits};
use crate::operands::{ANY, Held, Operands, Slot, dim, of_logits};
use crate::processor::{Kernels, launch};
use crate::table::table;

/// Rows of logits `[logit_rows, stride]`, f32, bf16 or f16, that sampling reads or also replaces. `stride` is a multiple of 8,
/// at least the vocabulary; columns beyond the vocabulary are not used.
#[derive(Clone, Copy, Debug)]
pub enum SampledLogits<'a> {
    /// The logits, which sampling only reads. Calibrated logits are not stored.
    Read(&'a Tensor),
    /// The logits, which the calibrated logits replace in place. Needed if the acceptance rule compares distributions, or
    /// if a row with a calibrator asks for top-k, top-p or min-p.
    Update(&'a Tensor),
    /// The logits, which the logits after these edits replace in place. Not with a calibration.
    Edit(&'a Tensor, &'a EditTables),
}

/// The calibrator's last layer, and its input; of the type of the logits, if these have 16 bits.
#[derive(Clone, Copy, Debug)]
pub struct Calibration<'a> {
    /// The calibrator's hidden layer u = silu(W1 \[embed(b); h] + b1), `[rows, rank]` of bf16 or f16.
    pub hidden: &'a Tensor,
    /// The weight W2 of the last layer, `[vocab, rank]` of the same type.
    pub weight: &'a Tensor,
    /// The bias b2 of the last layer, `[vocab]` of f32.
    pub bias: Option<&'a Tensor>,
}

/// The operands of [`Kernels::sample`].
#[derive(Clone, Copy, Debug)]
pub struct Sample<'a> {
    /// The number of token ids, 1 to 2²⁰.
    pub vocab: usize,
    /// The logits to sample from.
    pub logits: SampledLogits<'a>,
    /// The index in the logits of each row, `[rows]`; −1 makes a row padding, with statistics of zero. Without an index,
    /// row r has logits row r. If logits are updated, each logits row should be named once.
    pub logit_index: Option<&'a Tensor>,
    /// How each row is warped and drawn from: a [`table`] of [`RowSampling`].
    pub sampling: &'a Tensor,
    /// The positions from which [`RowSampling::relative_to`] counts, `[sequences]`.
    pub starts: Option<&'a Tensor>,
    /// The token of each row whose probability is wanted, `[rows]`; −1 for none.
    pub draft: Option<&'a Tensor>,
    /// The calibrator's correction of the rows, if they are rows of a draft.
    pub calibration: Option<Calibration<'a>>,
}

/// The results of [`Kernels::sample`].
#[derive(Clone, Debug)]
pub struct Sampled {
    /// The statistics of each row, a table of [`RowStats`]; [`tokens`](crate::tokens) gives the tokens.
    pub stats: Tensor,
    /// The partial results of each row, which [`chain_choose`](Kernels::chain_choose) and
    /// [`accept`](Kernels::accept) read, `[rows, partials]` of f32.
    pub partials: Tensor,
}

/// The places of the operands of a launch.
struct Slots {
    logits: Slot,
    edits: Option<[Slot; 4]>,
    logit_index: Option<Slot>,
    sampling: Slot,
    starts: Option<Slot>,
    draft: Option<Slot>,
    calibration: Option<(Slot, Slot, Option<Slot>)>,
    workspace: Slot,
    stats: Slot,
    error: Slot,
}

impl<'a> SampledLogits<'a> {
    fn tensor(self) -> &'a Tensor {
        match self {
            SampledLogits::Read(logits) | SampledLogits::Update(logits) | SampledLogits::Edit(logits, _) => {
                logits
            }
        }
    }
}

impl Sample<'_> {
    fn slots(
        &self,
        kernels: &Kernels,
        operands: &mut Operands<'_>,
        (stats, workspace): (Slot, Slot),
    ) -> Result<Slots> {
        let rows = dim(self.sampling, 0);
        let logits = match self.logits {
            SampledLogits::Read(logits) => operands.read("logits", logits, Logits, &[ANY, ANY])?,
            SampledLogits::Update(logits) | SampledLogits::Edit(logits, _) => {
                operands.write("logits", logits, Logits, &[ANY, ANY])?
            }
        };
        let edits = match self.logits {
            SampledLogits::Edit(_, tables) => Some(edit_slots(kernels, operands, tables)?),
            _ => None,
        };
        let calibration = self.calibration.map(|Calibration { hidden, weight, bias }| -> Result<_> {
            let rank = dim(hidden, 1);
            // 16-bit logits, or else the hidden layer, decide the calibrator's type.
            let of = |tensor: &Tensor| match tensor.dtype() {
                DType::F16 => Elements::F16,
                DType::BF16 => Elements::Bf16,
                _ => Elements::Half,
            };
            let hidden_slot = operands.read("hidden", hidden, of(self.logits.tensor()), &[rows, ANY])?;
            let weight = operands.read("weight", weight, of(hidden), &[self.vocab, rank])?;
            Ok((hidden_slot, weight, operands.optional("bias", bias, F32, &[self.vocab])?))
        });
        Ok(Slots {
            logits,
            edits,
            logit_index: operands.optional("logit_index", self.logit_index, Index, &[rows])?,
            sampling: operands.read("sampling", self.sampling, Elements::of::<RowSampling>(), &[ANY])?,
            starts: operands.optional("starts", self.starts, Index, &[ANY])?,
            draft: operands.optional("draft", self.draft, Index, &[rows])?,
            calibration: calibration.transpose()?,
            workspace,
            stats,
            error: kernels.faults(operands)?,
        })
    }

    fn launch<'m, L: Logit>(&self, slots: &Slots, memory: &'m Held<'_>) -> Launch<'m, L> {
        Launch {
            vocab: self.vocab,
            stride: dim(self.logits.tensor(), 1),
            logits: match (self.logits, slots.edits) {
                (SampledLogits::Read(_), _) => LogitRows::Read(memory.view(slots.logits)),
                (_, None) => LogitRows::Update(memory.view_mut(slots.logits)),
                (_, Some([rows, offsets, edits, masks])) => {
                    let (rows, offsets) = (memory.view(rows), memory.view(offsets));
                    let (edits, masks) = (memory.view(edits), memory.view(masks));
                    LogitRows::Edit(memory.view_mut(slots.logits), Edits { rows, offsets, edits, masks })
                }
            },
            logit_index: memory.optional(slots.logit_index),
            sampling: memory.view(slots.sampling),
            starts: memory.optional(slots.starts),
            draft: memory.optional(slots.draft),
            calibration: self.calibration.as_ref().zip(slots.calibration).map(
                |(calibration, (hidden, weight, bias))| LaunchedCalibration {
                    rank: dim(calibration.hidden, 1),
                    hidden: memory.half(hidden, calibration.hidden.dtype()),
                    weight: memory.half(weight, calibration.weight.dtype()),
                    bias: memory.optional(bias),
                },
            ),
            workspace: memory.view_mut(slots.workspace),
            stats: memory.view_mut(slots.stats),
            error: Some(memory.view_mut(slots.error)),
        }
    }
}

/// Copies tables of edits to the device.
fn edit_slots(kernels: &Kernels, operands: &mut Operands<'_>, tables: &EditTables) -> Result<[Slot; 4]> {
    let device = kernels.device();
    let numbers = |numbers: &[i32]| Tensor::from_slice(numbers, numbers.len(), device);
    let masks = Tensor::from_slice(&tables.masks, tables.masks.len(), device)?;
    Ok([
        operands.read("row edits", &table(&tables.rows, device)?, Elements::of::<RowEdits>(), &[ANY])?,
        operands.read("edit offsets", &numbers(&tables.offsets)?, Index, &[ANY])?,
        operands.read("edits", &table(&tables.edits, device)?, Elements::of::<LogitEdit>(), &[ANY])?,
        operands.read("masks", &masks, Index, &[ANY])?,
    ])
}

impl Kernels {
    /// Calibrates or edits rows of logits, applies temperature and truncation, and samples a token from each row.
    ///
    /// Faults: [`Token`](flexdraft::kernels::Fault::Token) for a draft token outside the vocabulary,
    /// [`Nan`](flexdraft::kernels::Fault::Nan) for a NaN among the logits, [`Row`](flexdraft::kernels::Fault::Row) for a row
    /// or sequence index out of range, and [`Store`](flexdraft::kernels::Fault::Store) if the kernel needed calibrated
    /// logits again that were not stored.
    ///
    /// # Errors
    ///
    /// An [`Error`](crate::Error) if operands do not fit each other.
    pub fn sample(&self, args: &Sample<'_>) -> Result<Sampled> {
        of_logits!(args.logits.tensor(), self.sample_rows("sample", args, true))
    }

    /// Runs the first of the two launches of [`sample`](Self::sample) alone: it calibrates or edits the logits, and returns
    /// the partial results of the rows, which [`chain_choose`](Self::chain_choose) reads, `[rows, partials]` of f32.
    ///
    /// # Errors
    ///
    /// The errors of [`sample`](Self::sample).
    pub fn sample_partials(&self, args: &Sample<'_>) -> Result<Tensor> {
        let sampled = of_logits!(args.logits.tensor(), self.sample_rows("sample_partials", args, false));
        Ok(sampled?.partials)
    }

    fn sample_rows<L: Logit>(&self, kernel: &'static str, args: &Sample<'_>, draw: bool) -> Result<Sampled> {
        let mut operands = self.operands(kernel);
        // The kernel refuses a vocabulary that is larger than the stride.
        let (rows, vocab) = (dim(args.sampling, 0), args.vocab.min(dim(args.logits.tensor(), 1)));
        let (stats, row_stats) = operands.output_table::<RowStats>("stats", rows)?;
        let partials = workspace_len(1, vocab, args.calibration.is_some()).map_err(refused)?;
        let (workspace, partials) = operands.output("workspace", DType::F32, &[rows, partials])?;
        let slots = args.slots(self, &mut operands, (stats, workspace))?;
        launch!(self, operands, |loaded, stream, memory| {
            let launch = args.launch::<L>(&slots, memory);
            if draw { loaded.sample(stream, launch) } else { loaded.sample_partials(stream, launch) }
        })?;
        Ok(Sampled { stats: row_stats, partials })
    }
}
