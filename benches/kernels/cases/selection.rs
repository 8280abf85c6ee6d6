//! Benchmark cases of the kernels that run before the layers of a step: they compute the rows' rotations, and select
//! the rows that draft next.

use bytemuck::Zeroable;
use flexdraft::kernels::acceptance::Verdict;
use flexdraft::kernels::rope::RopeTable;
use flexdraft::kernels::selection::{Draft, DraftGroups, FollowVerdicts, SelectDrafts};
use flexdraft::kernels::{KernelError, Paging, PassTables};
use flexdraft::layout::{GroupSet, Pass, SequenceRows};
use flexdraft::runtime::Runtime;
use serde::Serialize;

use super::{Case, Prepared};
use crate::floor::{self, Floor};
use crate::machine::Machine;

/// Batch sizes of a decode step.
const BATCHES: [usize; 3] = [1, 16, 64];

/// A benchmark case of the kernel that computes the rows' rotations: `batch` sequences with `candidates` rows each.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Rotations {
    pub batch: usize,
    pub candidates: usize,
    pub head_dim: usize,
}

impl Rotations {
    pub fn all() -> Vec<Self> {
        BATCHES.map(|batch| Rotations { batch, candidates: 16, head_dim: 128 }).to_vec()
    }
}

/// A benchmark case of the kernels `select_drafts` or `follow_verdicts`, for `batch` sequences with `slots` slots per
/// draft.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Selection {
    #[serde(skip)]
    pub kernel: &'static str,
    pub batch: usize,
    pub slots: usize,
}

impl Selection {
    pub fn all() -> Vec<Self> {
        let over_batches = |kernel| BATCHES.map(|batch| Selection { kernel, batch, slots: 16 });
        ["select_drafts", "follow_verdicts"].into_iter().flat_map(over_batches).collect()
    }
}

/// Returns a pass of equal sequences after position 40; one page per sequence is enough, because attention does not
/// run.
fn pass<'a>(pages: &'a [u32], candidates: usize, groups: &[usize], slots: usize) -> Pass<'a> {
    let rows = |page| SequenceRows {
        pages: std::slice::from_ref(page),
        start: 40,
        candidates,
        groups: groups.to_vec(),
        slots,
    };
    Pass { sequences: pages.iter().map(rows).collect() }
}

fn tables<R: Runtime>(
    machine: &Machine<R>,
    batch: usize,
    candidates: usize,
    groups: &[usize],
    slots: usize,
) -> Result<PassTables<R>, KernelError> {
    let (runtime, stream) = (machine.kernels.runtime(), &machine.stream);
    let pages: Vec<u32> = (0..batch as u32).collect();
    let mut tables = PassTables::new(runtime, stream, batch, 1)?;
    let paging = Paging { pages: batch, page_size: 128 };
    tables.upload(runtime, stream, &pass(&pages, candidates, groups, slots), paging)?;
    Ok(tables)
}

struct RotationOperands<'a, R: Runtime> {
    machine: &'a Machine<R>,
    pass: PassTables<R>,
    inv_freq: R::Memory<f32>,
    cos_sin: R::Memory<f32>,
}

impl Case for Rotations {
    fn kernel(&self) -> &'static str {
        "rope_table"
    }

    fn floor(&self) -> Floor {
        floor::rope_table((self.batch * self.candidates) as u64, self.head_dim as u64)
    }

    fn prepare<'a, R: Runtime>(
        &self,
        machine: &'a Machine<R>,
    ) -> Result<Box<dyn Prepared + 'a>, KernelError> {
        Ok(Box::new(RotationOperands {
            machine,
            pass: tables(machine, self.batch, self.candidates, &[], 0)?,
            inv_freq: machine.memory(&vec![0.01; self.head_dim / 2])?,
            cos_sin: machine.zeros(self.batch * self.candidates * self.head_dim)?,
        }))
    }
}

impl<R: Runtime> Prepared for RotationOperands<'_, R> {
    fn launch(&mut self) -> Result<(), KernelError> {
        let (runtime, stream) = (self.machine.kernels.runtime(), &self.machine.stream);
        let args = RopeTable {
            pass: &self.pass,
            inv_freq: runtime.view(stream, &self.inv_freq),
            scale: 1.0,
            cos_sin: runtime.view_mut(stream, &mut self.cos_sin),
        };
        self.machine.kernels.rope_table(stream, &args)
    }
}

struct SelectionOperands<'a, R: Runtime> {
    machine: &'a Machine<R>,
    follows: bool,
    verdicts: R::Memory<Verdict>,
    drafts: R::Memory<Draft>,
    bonus: R::Memory<i32>,
    starts: R::Memory<i32>,
    sources: R::Memory<i32>,
    draft_rows: R::Memory<i32>,
    pass: PassTables<R>,
    sequences: R::Memory<i32>,
}

impl Case for Selection {
    fn kernel(&self) -> &'static str {
        self.kernel
    }

    fn floor(&self) -> Floor {
        match self.kernel {
            "follow_verdicts" => floor::follow_verdicts(self.batch as u64),
            _ => floor::select_drafts(self.batch as u64, self.slots as u64),
        }
    }

    fn prepare<'a, R: Runtime>(
        &self,
        machine: &'a Machine<R>,
    ) -> Result<Box<dyn Prepared + 'a>, KernelError> {
        let Selection { batch, slots, .. } = *self;
        // Every sequence's verdict accepts two of up to four draft tokens.
        let verdict = Verdict { accepted: 2, cached_length: 43, bonus: 7, ..Verdict::zeroed() };
        let draft = |sequence| DraftGroups {
            sequence,
            groups: GroupSet::all(4),
            first_slot: sequence * 5 * slots,
            slots,
            first_draft: sequence * (slots - 1),
        };
        let drafts = (0..batch).map(|i| Draft::new(&draft(i))).collect::<Result<Vec<_>, _>>()?;
        let sequences: Vec<i32> = (0..batch as i32).collect();
        let rows = batch * (slots - 1);
        Ok(Box::new(SelectionOperands {
            machine,
            follows: self.kernel == "follow_verdicts",
            verdicts: machine.memory(&vec![verdict; batch])?,
            drafts: machine.memory(&drafts)?,
            bonus: machine.zeros(batch)?,
            starts: machine.zeros(batch)?,
            sources: machine.zeros(rows)?,
            draft_rows: machine.zeros(rows)?,
            pass: tables(machine, batch, 0, &[4], slots)?,
            sequences: machine.memory(&sequences)?,
        }))
    }
}

impl<R: Runtime> Prepared for SelectionOperands<'_, R> {
    fn launch(&mut self) -> Result<(), KernelError> {
        let (kernels, stream) = (&self.machine.kernels, &self.machine.stream);
        let runtime = kernels.runtime();
        let verdicts = runtime.view(stream, &self.verdicts);
        if self.follows {
            let sequences = runtime.view(stream, &self.sequences);
            let pass = &mut self.pass;
            return kernels
                .follow_verdicts(stream, FollowVerdicts { pass, sequences, verdicts, error: None });
        }
        let args = SelectDrafts {
            drafts: runtime.view(stream, &self.drafts),
            verdicts,
            bonus: runtime.view_mut(stream, &mut self.bonus),
            starts: runtime.view_mut(stream, &mut self.starts),
            sources: runtime.view_mut(stream, &mut self.sources),
            draft_rows: runtime.view_mut(stream, &mut self.draft_rows),
            error: None,
        };
        kernels.select_drafts(stream, &args)
    }
}
