//! What a step works out about its rows: rotations, and what verdicts decide about drafts.

use flexdraft::backend::Backend;
use flexdraft::kernels::acceptance::Verdict;
use flexdraft::kernels::glue::RopeTable;
use flexdraft::kernels::selection::{Draft, DraftGroups, FollowVerdicts, SelectDrafts};
use flexdraft::kernels::{KernelError, Paging, PassTables};
use flexdraft::layout::{GroupSet, Pass, SequenceRows};
use serde::Serialize;

use super::{Case, Prepared};
use crate::floor::{self, Floor};
use crate::machine::Machine;

/// `batch` sequences that draft `slots` − 1 tokens each from one group.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Selection {
    /// `rope_table`, `select_drafts` or `follow_verdicts`.
    #[serde(skip)]
    pub kernel: &'static str,
    pub batch: usize,
    pub slots: usize,
}

/// Of the rotations: Qwen3-8B's.
const HEAD_DIM: usize = 128;

/// The largest accepted length that passes are laid out for; half of it is accepted.
const DRAFTS: usize = 4;

impl Selection {
    /// Blocks of 16 of a sequence and of a large batch.
    pub fn all() -> Vec<Self> {
        ["rope_table", "select_drafts", "follow_verdicts"]
            .into_iter()
            .flat_map(|kernel| [1, 64].map(|batch| Selection { kernel, batch, slots: 16 }))
            .collect()
    }
}

struct Operands<'a, B: Backend> {
    machine: &'a Machine<B>,
    kernel: &'static str,
    pass: PassTables<B>,
    inv_freq: B::Memory<f32>,
    turns: B::Memory<f32>,
    verdicts: B::Memory<Verdict>,
    sequences: B::Memory<i32>,
    drafts: B::Memory<Draft>,
    bonus: B::Memory<i32>,
    starts: B::Memory<i32>,
    sources: B::Memory<i32>,
    draft_rows: B::Memory<i32>,
}

impl Case for Selection {
    fn kernel(&self) -> &'static str {
        self.kernel
    }

    fn floor(&self) -> Floor {
        let (batch, slots) = (self.batch as u64, self.slots as u64);
        match self.kernel {
            "rope_table" => floor::rope_table(batch * slots, HEAD_DIM as u64),
            "select_drafts" => floor::select_drafts(batch, batch * (slots - 1)),
            _ => floor::follow_verdicts(batch),
        }
    }

    fn prepare<'a, B: Backend>(
        &self,
        machine: &'a Machine<B>,
    ) -> Result<Box<dyn Prepared + 'a>, KernelError> {
        let (backend, stream) = (machine.kernels.backend(), &machine.stream);
        let Selection { kernel, batch, slots } = *self;
        let (start, page_size) = (1000, 64);
        let pages: Vec<u32> = vec![0; (start + DRAFTS + 1).div_ceil(page_size)];
        let rows = || SequenceRows { pages: &pages, start, candidates: 0, groups: vec![DRAFTS], slots };
        let layout = Pass { sequences: (0..batch).map(|_| rows()).collect() };
        let mut pass = PassTables::new(backend, stream, batch, pages.len())?;
        pass.upload(backend, stream, &layout, Paging { pages: 1, page_size })?;
        let accepted = DRAFTS / 2;
        let verdict = Verdict {
            accepted: accepted as i32,
            bonus: 7,
            probability: 0.5,
            group: 0,
            cached_length: (start + accepted + 1) as i64,
        };
        let drafts = (0..batch).map(|sequence| {
            let (groups, first_slot) = (GroupSet::NONE.with(accepted), sequence * slots);
            let first_draft = sequence * (slots - 1);
            Draft::new(&DraftGroups { sequence, groups, first_slot, slots, first_draft })
        });
        let drafts: Vec<Draft> = drafts.collect::<Result<_, _>>()?;
        let inv_freq: Vec<f32> =
            (0..HEAD_DIM / 2).map(|i| 1e6f32.powf(-2.0 * i as f32 / HEAD_DIM as f32)).collect();
        let sequences: Vec<i32> = (0..batch as i32).collect();
        let draft_rows = batch * (slots - 1);
        Ok(Box::new(Operands {
            machine,
            kernel,
            inv_freq: machine.memory(&inv_freq)?,
            turns: machine.zeros(pass.rows() * HEAD_DIM)?,
            pass,
            verdicts: machine.memory(&vec![verdict; batch])?,
            sequences: machine.memory(&sequences)?,
            drafts: machine.memory(&drafts)?,
            bonus: machine.zeros(batch)?,
            starts: machine.zeros(batch)?,
            sources: machine.zeros(draft_rows)?,
            draft_rows: machine.zeros(draft_rows)?,
        }))
    }
}

impl<B: Backend> Prepared for Operands<'_, B> {
    fn launch(&mut self) -> Result<(), KernelError> {
        let (kernels, stream) = (&self.machine.kernels, &self.machine.stream);
        let backend = kernels.backend();
        let verdicts = backend.view(stream, &self.verdicts);
        match self.kernel {
            "rope_table" => {
                let (pass, inv_freq) = (&self.pass, backend.view(stream, &self.inv_freq));
                let turns = backend.view_mut(stream, &mut self.turns);
                kernels.rope_table(stream, &RopeTable { pass, inv_freq, scale: 1.0, turns })
            }
            "select_drafts" => kernels.select_drafts(
                stream,
                &SelectDrafts {
                    drafts: backend.view(stream, &self.drafts),
                    verdicts,
                    bonus: backend.view_mut(stream, &mut self.bonus),
                    starts: backend.view_mut(stream, &mut self.starts),
                    sources: backend.view_mut(stream, &mut self.sources),
                    draft_rows: backend.view_mut(stream, &mut self.draft_rows),
                    error: None,
                },
            ),
            // A group that has followed its verdict stays where it is.
            _ => {
                let sequences = backend.view(stream, &self.sequences);
                let pass = &mut self.pass;
                kernels.follow_verdicts(stream, FollowVerdicts { pass, sequences, verdicts, error: None })
            }
        }
    }
}
