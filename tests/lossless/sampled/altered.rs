//! The CPU device with its sampling replaced, to observe the distributions or to plant a bug.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use flexdraft::acceptance::{self, Rows, Rule};
use flexdraft::device::cpu::{Cpu, CpuSelection, CpuVerification};
use flexdraft::device::{
    AttentionRows, AttentionShape, Corrections, Device, DeviceError, DraftRows, DraftSelection, DraftTables,
    DraftToken, DraftingPass, LinearPart, QkTransform, RowKind, SequenceVerdict, StepResults, StepTables,
    Verification, VerifyRows,
};
use flexdraft::layout::Pass;
use flexdraft::random::{Purpose, Stream};
use flexdraft::sampling::{SamplingParams, confidence, draw, draw_weighted, softmax, warp};
use flexdraft::tensor::Tensor;

type Buffer = <Cpu as Device>::Buffer;
type Results = <Cpu as Device>::Results;

/// The total variation distance between the target's p_{j−1} and the drafter's q_j, as a sum over the verified slots j
/// and their count, for each j.
pub type Distances = Arc<Mutex<Vec<(f64, u64)>>>;

#[derive(Clone, Debug)]
pub enum Alteration {
    /// No bug is planted; the distance of target and drafter is recorded.
    Observe(Distances),
    /// The planted bug keys draft draws and acceptance uniforms by the token's position and not by the step.
    PositionKeyed,
    /// The planted bug's residual is |P·p − q| in place of max(P·p − q, 0).
    ResidualNotClamped,
    /// The planted bug makes acceptance take the drafter's distribution as it was before truncation and temperature.
    DraftNotWarped,
    /// Every third verification of a sequence fails with an error of the device.
    Fails(Arc<AtomicUsize>),
}

pub struct Altered {
    pub cpu: Cpu,
    pub alteration: Alteration,
}

/// The warped distributions that one verification compares.
#[derive(Clone, Copy)]
struct AlteredRows<'a> {
    logits: &'a Buffer,
    request: &'a VerifyRows<'a, Buffer>,
    draft_sampling: &'a SamplingParams,
}

impl AlteredRows<'_> {
    fn draft_row(&self, slot: usize) -> &[f32] {
        let draft = self.request.draft_logits.unwrap();
        draft.logits.row(draft.first_row + slot - 1).unwrap()
    }
}

impl Rows for AlteredRows<'_> {
    fn target(&mut self, i: usize) -> Vec<f64> {
        softmax(&warp(self.logits.row(self.request.first_row + i).unwrap(), self.request.sampling))
    }

    fn draft(&mut self, j: usize) -> Vec<f64> {
        softmax(&warp(self.draft_row(j), self.draft_sampling))
    }
}

impl Altered {
    fn verify_one(
        &self,
        logits: &mut Buffer,
        request: &VerifyRows<'_, Buffer>,
    ) -> Result<SequenceVerdict, DeviceError> {
        let warped = AlteredRows { logits: &*logits, request, draft_sampling: request.sampling };
        if let Alteration::Observe(distances) = &self.alteration {
            note(warped, distances);
        }
        if let Alteration::Fails(count) = &self.alteration
            && count.fetch_add(1, Ordering::Relaxed) % 3 == 2
        {
            return Err(DeviceError::OutOfMemory { what: "planted", bytes: 1 });
        }
        if request.draft.is_empty()
            || matches!(self.alteration, Alteration::Observe(_) | Alteration::Fails(_))
        {
            let mut results = self.cpu.new_results();
            let (pass, sequences) = (Pass::default(), std::slice::from_ref(request));
            let tables = StepTables { sequences, ..StepTables::new(&pass, &[]) };
            let verification = self.cpu.verify(tables, logits, &mut results)?;
            return Ok(verification.verdicts()[0]);
        }
        let plain = SamplingParams::at_temperature(1.0);
        let mut rows = match self.alteration {
            Alteration::DraftNotWarped => AlteredRows { draft_sampling: &plain, ..warped },
            _ => warped,
        };
        let stream = |purpose, slot| match self.alteration {
            Alteration::PositionKeyed => Stream::new(request.seed, purpose, 0, request.start + slot),
            _ => Stream::new(request.seed, purpose, slot, request.start),
        };
        let uniform = |slot| stream(Purpose::AcceptanceUniform, slot).uniform();
        let mut decision = match request.rule {
            Rule::Block => acceptance::block(request.draft, &mut rows, uniform),
            Rule::Rejection | Rule::Match => acceptance::rejection(request.draft, &mut rows, uniform),
        };
        let a = decision.accepted;
        if matches!(self.alteration, Alteration::ResidualNotClamped) && a < request.draft.len() {
            let prefix = match request.rule {
                Rule::Block => (0..a).fold(1.0, |prefix: f64, i| {
                    let token = request.draft[i] as usize;
                    (prefix * rows.target(i)[token] / rows.draft(i + 1)[token]).min(1.0)
                }),
                _ => 1.0,
            };
            let (p, q) = (rows.target(a), rows.draft(a + 1));
            decision.weights = p.iter().zip(q).map(|(p, q)| (prefix * p - q).abs()).collect();
        }
        let bonus = draw_weighted(
            &decision.weights,
            Stream::new(request.seed, Purpose::ResidualDraw, a, request.start),
        );
        Ok(SequenceVerdict { accepted: a, bonus, next_start: request.start + a + 1, fault: None })
    }
}

fn note(mut rows: AlteredRows<'_>, distances: &Distances) {
    let mut distances = distances.lock().unwrap();
    for slot in 1..=rows.request.draft.len() {
        let (p, q) = (rows.target(slot - 1), rows.draft(slot));
        if distances.len() < slot {
            distances.resize(slot, (0.0, 0));
        }
        let (sum, count) = &mut distances[slot - 1];
        *sum += p.iter().zip(q).map(|(p, q)| (p - q).abs()).sum::<f64>() / 2.0;
        *count += 1;
    }
}

impl Device for Altered {
    type Buffer = Buffer;
    type Linear = <Cpu as Device>::Linear;
    type Vector = <Cpu as Device>::Vector;
    type Cache = <Cpu as Device>::Cache;
    type Results = Results;
    type Pass<'a> = <Cpu as Device>::Pass<'a>;
    type Tables<'a> = <Cpu as Device>::Tables<'a>;
    type Verification<'a> = AlteredVerification<'a>;

    fn begin<'a>(
        &'a self,
        tables: StepTables<'a, Buffer>,
        cache: &Self::Cache,
    ) -> Result<(Self::Pass<'a>, Self::Tables<'a>), DeviceError> {
        self.cpu.begin(tables, cache)
    }

    fn upload_draft(&self, scores: &[Vec<f32>], out: &mut Buffer) -> Result<(), DeviceError> {
        self.cpu.upload_draft(scores, out)
    }

    fn pads_steps(&self) -> bool {
        self.cpu.pads_steps()
    }

    fn verify<'a>(
        &'a self,
        tables: StepTables<'a, Buffer>,
        logits: &mut Buffer,
        results: &'a mut Results,
    ) -> Result<AlteredVerification<'a>, DeviceError> {
        let verdicts: Result<Vec<_>, _> =
            tables.sequences.iter().map(|request| self.verify_one(logits, request)).collect();
        let cpu = self.cpu.verified(verdicts?, results);
        Ok(AlteredVerification { cpu, alteration: &self.alteration, replaced: Vec::new() })
    }

    // All operations that are not altered are the CPU device's.

    fn new_linear(&self, parts: &[LinearPart<'_>]) -> Result<Self::Linear, DeviceError> {
        self.cpu.new_linear(parts)
    }

    fn new_vector(&self, tensor: &Tensor) -> Result<Self::Vector, DeviceError> {
        self.cpu.new_vector(tensor)
    }

    fn new_cache(
        &self,
        layers: usize,
        pages: usize,
        page_size: usize,
        shape: AttentionShape,
    ) -> Result<Self::Cache, DeviceError> {
        self.cpu.new_cache(layers, pages, page_size, shape)
    }

    fn new_buffer(&self, cols: usize) -> Buffer {
        self.cpu.new_buffer(cols)
    }

    fn new_logits(&self, cols: usize) -> Buffer {
        self.cpu.new_logits(cols)
    }

    fn new_results(&self) -> Results {
        self.cpu.new_results()
    }

    fn resize(&self, buffer: &mut Buffer, rows: usize) -> Result<(), DeviceError> {
        self.cpu.resize(buffer, rows)
    }

    fn embed(
        &self,
        table: &Self::Linear,
        ids: &[u32],
        first_row: usize,
        out: &mut Buffer,
    ) -> Result<(), DeviceError> {
        self.cpu.embed(table, ids, first_row, out)
    }

    fn fill_rows(
        &self,
        value: &Self::Vector,
        rows: Range<usize>,
        out: &mut Buffer,
    ) -> Result<(), DeviceError> {
        self.cpu.fill_rows(value, rows, out)
    }

    fn rms_norm(
        &self,
        x: &Buffer,
        rows: Range<usize>,
        weight: &Self::Vector,
        eps: f32,
        out: &mut Buffer,
    ) -> Result<(), DeviceError> {
        self.cpu.rms_norm(x, rows, weight, eps, out)
    }

    fn linear_to(
        &self,
        layer: &Self::Linear,
        x: &Buffer,
        rows: Range<usize>,
        first_row: usize,
        out: &mut Buffer,
    ) -> Result<(), DeviceError> {
        self.cpu.linear_to(layer, x, rows, first_row, out)
    }

    fn add(&self, delta: &Buffer, rows: Range<usize>, hidden: &mut Buffer) -> Result<(), DeviceError> {
        self.cpu.add(delta, rows, hidden)
    }

    fn silu_mul(&self, x: &Buffer, rows: Range<usize>, out: &mut Buffer) -> Result<(), DeviceError> {
        self.cpu.silu_mul(x, rows, out)
    }

    fn silu_add(&self, bonus: &Buffer, owner: &[usize], x: &mut Buffer) -> Result<(), DeviceError> {
        self.cpu.silu_add(bonus, owner, x)
    }

    fn gather(&self, x: &Buffer, rows: &[usize], out: &mut Buffer) -> Result<(), DeviceError> {
        self.cpu.gather(x, rows, out)
    }

    fn norm_rope_append(
        &self,
        transform: &QkTransform<'_, Self::Vector>,
        pass: &mut Self::Pass<'_>,
        kind: RowKind,
        qkv: &mut Buffer,
        layer: usize,
        cache: &mut Self::Cache,
    ) -> Result<(), DeviceError> {
        self.cpu.norm_rope_append(transform, pass, kind, qkv, layer, cache)
    }

    fn joint_attention(
        &self,
        shape: AttentionShape,
        rows: AttentionRows<'_, Self::Pass<'_>>,
        qkv: &Buffer,
        layer: usize,
        cache: &Self::Cache,
        out: &mut Buffer,
    ) -> Result<(), DeviceError> {
        self.cpu.joint_attention(shape, rows, qkv, layer, cache, out)
    }

    fn edit_row(
        &self,
        logits: &mut Buffer,
        row: usize,
        edit: &mut dyn FnMut(&mut [f32]),
    ) -> Result<(), DeviceError> {
        self.cpu.edit_row(logits, row, edit)
    }
}

pub struct AlteredVerification<'a> {
    cpu: CpuVerification<'a>,
    alteration: &'a Alteration,
    /// The drafts that the bug `PositionKeyed` draws in place of the CPU device's drafts; empty with any other
    /// alteration.
    replaced: Vec<Vec<DraftToken>>,
}

pub struct AlteredSelection<'s> {
    cpu: CpuSelection<'s>,
    alteration: &'s Alteration,
    /// The rows to draft from, each with the start of the step that will verify the draft.
    drafts: Vec<(&'s DraftRows<'s>, usize)>,
    first_row: usize,
    replaced: &'s mut Vec<Vec<DraftToken>>,
}

impl Verification<Altered> for AlteredVerification<'_> {
    type Selection<'s>
        = AlteredSelection<'s>
    where
        Self: 's;

    fn verdicts_if_ready(&self) -> Option<&[SequenceVerdict]> {
        self.cpu.verdicts_if_ready()
    }

    fn begin_drafting<'p>(
        &'p self,
        drafting: DraftingPass<'p>,
        cache: &<Cpu as Device>::Cache,
    ) -> Result<<Cpu as Device>::Pass<'p>, DeviceError> {
        self.cpu.begin_drafting(drafting, cache)
    }

    fn embed_bonus(
        &mut self,
        table: &<Cpu as Device>::Linear,
        verdicts: &[usize],
        out: &mut Buffer,
    ) -> Result<(), DeviceError> {
        self.cpu.embed_bonus(table, verdicts, out)
    }

    fn select_drafts<'s>(&'s mut self, drafts: DraftTables<'s>) -> Result<AlteredSelection<'s>, DeviceError> {
        let first_row = self.drafted_rows();
        let starts =
            drafts.drafts.iter().map(|draft| (draft, self.cpu.verdicts()[draft.sequence].next_start));
        Ok(AlteredSelection {
            drafts: starts.collect(),
            alteration: self.alteration,
            first_row,
            replaced: &mut self.replaced,
            cpu: self.cpu.select_drafts(drafts)?,
        })
    }

    fn drafted_rows(&self) -> usize {
        self.cpu.drafted_rows()
    }

    fn read(&mut self) -> Result<StepResults, DeviceError> {
        let StepResults { verdicts, drafts } = self.cpu.read()?;
        let replaced = std::mem::take(&mut self.replaced);
        Ok(StepResults { verdicts, drafts: if replaced.is_empty() { drafts } else { replaced } })
    }
}

impl DraftSelection<Altered> for AlteredSelection<'_> {
    fn gather(&self, x: &Buffer, out: &mut Buffer) -> Result<(), DeviceError> {
        self.cpu.gather(x, out)
    }

    fn embed_bonus(&self, table: &<Cpu as Device>::Linear, out: &mut Buffer) -> Result<(), DeviceError> {
        self.cpu.embed_bonus(table, out)
    }

    fn draft(
        self,
        corrections: Corrections<'_, Buffer, <Cpu as Device>::Linear>,
        logits: &mut Buffer,
    ) -> Result<(), DeviceError> {
        self.cpu.draft(corrections, logits)?;
        if !matches!(self.alteration, Alteration::PositionKeyed) {
            return Ok(());
        }
        let mut rows = self.first_row..;
        for (draft, start) in self.drafts {
            let token = |slot| {
                let row = logits.row(rows.next().unwrap()).unwrap();
                let stream = Stream::new(draft.seed, Purpose::DraftDraw, 0, start + slot);
                DraftToken { token: draw(&warp(row, draft.sampling), stream), confidence: confidence(row) }
            };
            self.replaced.push((1..draft.slots).map(token).collect());
        }
        Ok(())
    }
}
