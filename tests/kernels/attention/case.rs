//! A test case of attention: the sequences of a pass, the processor on which the case runs, and the reference's results
//! for the rows.

use std::ops::Range;

use flexdraft::kernels::attention::JointAttention;
use flexdraft::kernels::{
    HeadRows, KvStrides, MaskProjections, PagedKv, Paging, PassTables, Projections, ScoreChanges,
};
use flexdraft::layout::{AttentionShape, Pass, SequenceRows};
use flexdraft::runtime::simt::{Checking, Traffic};
use flexdraft::runtime::{Limits, Simt, SimtOptions};
use flexdraft_reference::attention::{Heads, KeysValues, attend_with};
use half::{bf16, f16};
use proptest::prelude::*;

use crate::halves::{Half, Kind, NAN};
use crate::processors::{Bench, Operand, Processor};
use crate::support::simt_variant::checking;

/// One sequence of an attention test.
#[derive(Clone, Debug)]
pub struct Sequence {
    pub start: usize,
    pub candidates: usize,
    pub groups: Vec<usize>,
    pub slots: usize,
    /// The seed of the sequence's q, k and v, and the index that candidate 0 has in the generation of its values.
    pub seed: u64,
    pub first: usize,
}

impl Sequence {
    /// Returns a sequence that has only candidate `i`: the autoregressive decode step at the candidate's position.
    pub fn candidate(&self, i: usize) -> Self {
        let (start, first) = (self.start + i, self.first + i);
        Self { start, first, candidates: 1, groups: vec![], ..self.clone() }
    }

    /// Returns a sequence that has only mask group number `i`: the drafting pass after the group's accepted length.
    pub fn group(&self, i: usize) -> Self {
        Self { candidates: 0, groups: vec![self.groups[i]], ..self.clone() }
    }

    pub fn rows(&self) -> usize {
        self.candidates + self.groups.len() * self.slots
    }

    /// Returns the number of cached positions that at least one row of the sequence sees.
    pub fn length(&self) -> usize {
        self.start + self.candidates.max(self.groups.last().map_or(0, |last| last + 1))
    }

    /// Returns the position of a row of the sequence.
    pub fn position(&self, row: usize) -> usize {
        match row.checked_sub(self.candidates) {
            None => self.start + row,
            Some(mask) => self.start + self.groups[mask / self.slots] + 1 + mask % self.slots,
        }
    }

    /// Returns the bits of q, k and v of a row. They do not depend on the pass that the row is in. Mask rows are
    /// identified by their group.
    fn row(&self, Setting { shape, kind, .. }: Setting, row: usize) -> Vec<u16> {
        let name = match row.checked_sub(self.candidates) {
            None => self.first + row,
            Some(mask) => 1000 + 100 * self.groups[mask / self.slots] + mask % self.slots,
        };
        kind.halves(self.seed ^ (name as u64) << 32, shape.qkv_cols())
    }

    /// Returns the bits of the keys and values of the sequence's cached positions, `[length, kv_heads · head_dim]`.
    fn cached(&self, Setting { shape, kind, .. }: Setting) -> [Vec<u16>; 2] {
        [1, 2].map(|s| kind.halves(self.seed ^ s << 20, self.length() * shape.kv_heads * shape.head_dim))
    }
}

/// The changes of a model to scores and softmax.
#[derive(Clone, Copy, Debug, Default)]
pub struct Changes {
    pub window: Option<usize>,
    pub soft_cap: Option<f32>,
    pub has_sinks: bool,
}

impl Changes {
    /// Returns the first position that a row at `position` sees.
    pub fn first_seen(self, position: usize) -> usize {
        self.window.map_or(0, |window| (position + 1).saturating_sub(window))
    }

    /// Returns the sinks of the query heads, from far below the scores to above them.
    fn sinks(self, q_heads: usize) -> Option<Vec<f32>> {
        self.has_sinks.then(|| (0..q_heads).map(|head| head as f32 * 1.75 % 9.0 - 4.0).collect())
    }
}

/// The conditions under which a test case runs: model shape, division of the keys, cache layout, and processor.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    pub shape: AttentionShape,
    /// The type of q, k, v, the cache and the output.
    pub kind: Kind,
    pub split: usize,
    pub page_size: usize,
    pub head_major: bool,
    /// True if q, and the q, k and v of mask rows, are in separate tensors.
    pub separate: bool,
    pub padding: usize,
    pub changes: Changes,
    pub processor: Processor,
    /// The options of the emulator, if the case runs on the emulator.
    pub options: SimtOptions,
    /// True if shared memory is limited so that only tiles of 64 rows with two stages fit.
    pub small: bool,
    /// The number of multiprocessors, which determines how many splits of the keys one CTA handles.
    pub multiprocessors: u32,
}

impl Setting {
    /// Returns the usual setting: bf16, one tile of keys per split, pages of 16 tokens, all of the shared memory, on the
    /// emulator.
    pub fn of(shape: AttentionShape) -> Self {
        Setting {
            shape,
            kind: Kind::Bf16,
            split: 64,
            page_size: 16,
            head_major: false,
            separate: false,
            padding: 0,
            changes: Changes::default(),
            processor: Processor::Emulator,
            options: SimtOptions { checking: checking(Checking::Off), ..SimtOptions::default() },
            small: false,
            multiprocessors: 4,
        }
    }

    /// Returns the same setting for another processor.
    pub fn on(self, processor: Processor) -> Self {
        Setting { processor, ..self }
    }

    fn bench(&self) -> Bench {
        Bench::limited(self.processor, self.options, |limits| Limits {
            multiprocessors: self.multiprocessors,
            shared_bytes_per_cta: if self.small { 99 << 10 } else { limits.shared_bytes_per_cta },
            ..limits
        })
    }

    pub fn strides(&self) -> KvStrides {
        let AttentionShape { kv_heads, head_dim, .. } = self.shape;
        match self.head_major {
            true => KvStrides::head_major(self.page_size, kv_heads, head_dim),
            false => KvStrides::token_major(self.page_size, kv_heads, head_dim),
        }
    }
}

/// The memory that an attention launch reads, as bits: the cached keys and values, and the rows' q, k and v.
pub struct Memory<'a> {
    setting: Setting,
    sequences: &'a [Sequence],
    pages: &'a [Vec<u32>],
    caches: [Vec<u16>; 2],
    qkv: Vec<u16>,
}

impl Memory<'_> {
    /// Replaces each value with another finite value, to show what the value influences.
    fn change(kind: Kind, values: &mut [u16]) {
        for bits in values {
            let x = kind.value(*bits) as f32;
            *bits = kind.bits(if x.is_nan() { 1.5 } else { 0.75 - 1.25 * x });
        }
    }

    /// Changes the cached key (`tensor` 0) or value (1) at a position.
    pub fn change_cached(&mut self, tensor: usize, sequence: usize, position: usize) {
        let (Setting { shape, page_size, .. }, strides) = (self.setting, self.setting.strides());
        let page = self.pages[sequence][position / page_size] as usize;
        for head in 0..shape.kv_heads {
            let at = page * strides.page + position % page_size * strides.token + head * strides.head;
            Self::change(self.setting.kind, &mut self.caches[tensor][at..at + shape.head_dim]);
        }
    }

    /// Replaces every value that a row may see with `bits`.
    pub fn fill_values(&mut self, bits: u16) {
        let shape = self.setting.shape;
        self.caches[1].fill(bits);
        for row in self.qkv.chunks_mut(shape.qkv_cols()) {
            row[shape.out_cols() + shape.kv_heads * shape.head_dim..].fill(bits);
        }
    }

    /// Replaces every q, and every key that a row may see, with `bits`.
    pub fn fill_queries_and_keys(&mut self, bits: u16) {
        let shape = self.setting.shape;
        self.caches[0].fill(bits);
        for row in self.qkv.chunks_mut(shape.qkv_cols()) {
            row[..shape.out_cols() + shape.kv_heads * shape.head_dim].fill(bits);
        }
    }

    /// Changes q (0), k (1) or v (2) of a row.
    pub fn change_row(&mut self, part: usize, sequence: usize, row: usize) {
        let shape = self.setting.shape;
        let before = &self.sequences[..sequence];
        let own = &self.sequences[sequence];
        let index = match row.checked_sub(own.candidates) {
            None => before.iter().map(|s| s.candidates).sum::<usize>() + row,
            Some(mask) => {
                let candidates: usize = self.sequences.iter().map(|s| s.candidates).sum();
                candidates + before.iter().map(|s| s.rows() - s.candidates).sum::<usize>() + mask
            }
        };
        let kv = shape.kv_heads * shape.head_dim;
        let (first, width) =
            [(0, shape.out_cols()), (shape.out_cols(), kv), (shape.out_cols() + kv, kv)][part];
        let at = index * shape.qkv_cols() + first;
        Self::change(self.setting.kind, &mut self.qkv[at..at + width]);
    }
}

/// The bits of a row's output and of its log-sum-exp.
pub type RowBits = (Vec<u16>, Vec<u32>);

/// Runs the case and returns the results of every row of every sequence, in order.
pub fn run(setting: Setting, sequences: &[Sequence]) -> Vec<Vec<RowBits>> {
    run_watched(&setting.bench(), setting, sequences, |_| {}).rows
}

/// Runs the case on `bench`, whose options and limits replace the setting's.
pub fn run_on(bench: &Bench, setting: Setting, sequences: &[Sequence]) -> Vec<Vec<RowBits>> {
    run_watched(bench, setting, sequences, |_| {}).rows
}

/// Runs the case after `change` has changed some of the memory that the launch reads.
pub fn run_changed(
    setting: Setting,
    sequences: &[Sequence],
    change: impl FnOnce(&mut Memory<'_>),
) -> Vec<Vec<RowBits>> {
    run_watched(&setting.bench(), setting, sequences, change).rows
}

/// Returns the bytes that the kernels read and wrote on the emulator.
pub fn traffic(setting: Setting, sequences: &[Sequence]) -> Vec<Traffic> {
    run_watched(&setting.bench(), setting, sequences, |_| {}).traffic
}

/// Returns the number of elements of the workspace that the kernels were given.
pub fn workspace_len(setting: Setting, sequences: &[Sequence]) -> usize {
    run_watched(&setting.bench(), setting, sequences, |_| {}).workspace_len
}

/// Rows of heads in memory of their own, which begin at element `first`.
struct Part {
    elements: Vec<u16>,
    first: usize,
    stride: usize,
}

/// Returns q of candidate rows, and q, k and v of mask rows, each in a tensor with another stride, in which NaN surrounds
/// the rows.
fn separated(shape: AttentionShape, qkv: &[u16], candidates: usize, masks: usize) -> [Part; 4] {
    let (q, kv) = (shape.out_cols(), shape.kv_heads * shape.head_dim);
    let part = |rows: Range<usize>, columns: Range<usize>, gap: usize| {
        let stride = columns.len() + gap;
        let mut elements = vec![NAN; gap];
        for (at, row) in rows.enumerate() {
            elements.resize(gap + at * stride, NAN);
            elements.extend(&qkv[row * shape.qkv_cols()..][columns.clone()]);
        }
        Part { elements, first: gap, stride }
    };
    let all = candidates..candidates + masks;
    [
        part(0..candidates, 0..q, 0),
        part(all.clone(), 0..q, 8),
        part(all.clone(), q..q + kv, 24),
        part(all, q + kv..q + 2 * kv, 16),
    ]
}

/// Returns rows of heads in memory as an operand.
fn head_rows<'a, T: Half>(
    bench: &'a Bench,
    (memory, range, stride): &'a (Operand<T>, Range<usize>, usize),
) -> HeadRows<'a, T> {
    HeadRows { view: bench.view(memory).range(range.clone()).unwrap(), stride: *stride }
}

/// The results of a launch, with the bytes that it moved and its workspace's size.
struct Watched {
    rows: Vec<Vec<RowBits>>,
    traffic: Vec<Traffic>,
    workspace_len: usize,
}

fn run_watched(
    bench: &Bench,
    setting: Setting,
    sequences: &[Sequence],
    change: impl FnOnce(&mut Memory<'_>),
) -> Watched {
    match setting.kind {
        Kind::Bf16 => run_watched_with::<bf16>(bench, setting, sequences, change),
        Kind::F16 => run_watched_with::<f16>(bench, setting, sequences, change),
    }
}

fn run_watched_with<T: Half>(
    bench: &Bench,
    setting: Setting,
    sequences: &[Sequence],
    change: impl FnOnce(&mut Memory<'_>),
) -> Watched {
    let Setting { shape, split, page_size, .. } = setting;
    let Bench { kernels, stream } = bench;

    // The sequences' page ids descend, and no sequence has page 0.
    let counts: Vec<usize> = sequences.iter().map(|s| s.length().div_ceil(page_size)).collect();
    let mut next: u32 = counts.iter().sum::<usize>() as u32;
    let page_count = next as usize + 1;
    let pages: Vec<Vec<u32>> = counts
        .iter()
        .map(|&count| {
            (0..count)
                .map(|_| {
                    next -= 1;
                    next + 1
                })
                .collect()
        })
        .collect();
    let kv_width = shape.kv_heads * shape.head_dim;
    let strides = setting.strides();
    let mut caches =
        [vec![NAN; page_count * page_size * kv_width], vec![NAN; page_count * page_size * kv_width]];
    for (sequence, pages) in sequences.iter().zip(&pages) {
        for (cache, values) in caches.iter_mut().zip(sequence.cached(setting)) {
            // What no row sees stays NaN.
            let first_seen = (0..sequence.rows())
                .map(|row| setting.changes.first_seen(sequence.position(row)))
                .min()
                .unwrap_or(0);
            for (position, token) in values.chunks(kv_width).enumerate().skip(first_seen) {
                let page = pages[position / page_size] as usize;
                for (head, values) in token.chunks(shape.head_dim).enumerate() {
                    let at = page * strides.page + position % page_size * strides.token + head * strides.head;
                    cache[at..at + shape.head_dim].copy_from_slice(values);
                }
            }
        }
    }
    let layout = Pass {
        sequences: sequences
            .iter()
            .zip(&pages)
            .map(|(s, pages)| SequenceRows {
                pages,
                start: s.start,
                candidates: s.candidates,
                groups: s.groups.clone(),
                slots: s.slots,
            })
            .collect(),
    };
    let mut tables =
        PassTables::new(bench.runtime(), stream, sequences.len(), counts.iter().copied().max().unwrap_or(0))
            .unwrap();
    tables.upload(bench.runtime(), stream, &layout, Paging { pages: page_count, page_size }).unwrap();

    let all: usize = sequences.iter().map(Sequence::rows).sum::<usize>() + setting.padding;
    let mut qkv = Vec::new();
    let candidates = sequences.iter().flat_map(|s| (0..s.candidates).map(move |row| (s, row)));
    let masks = sequences.iter().flat_map(|s| (s.candidates..s.rows()).map(move |row| (s, row)));
    for (sequence, row) in candidates.chain(masks) {
        let mut row_values = sequence.row(setting, row);
        if row < sequence.candidates {
            // The kernel reads the candidates' k and v from the cache, so the k and v beside q are NaN and must not
            // matter.
            row_values[shape.out_cols()..].fill(NAN);
        }
        qkv.extend(row_values);
    }
    qkv.resize(all * shape.qkv_cols(), NAN);
    let mut memory = Memory { setting, sequences, pages: &pages, caches, qkv };
    change(&mut memory);
    let Memory { caches, qkv, .. } = memory;
    let parts = separated(shape, &qkv, tables.candidates(), tables.masks());
    let memory = |bits: &[u16]| bench.memory::<T>(bytemuck::cast_slice(bits));
    let [k, v, qkv] = [&caches[0], &caches[1], &qkv].map(|bits| memory(bits));
    let [q, mask_q, mask_k, mask_v] =
        parts.map(|Part { elements, first, stride }| (memory(&elements), first..elements.len(), stride));
    let rows = |part| head_rows(bench, part);
    let mut out = memory(&vec![NAN; all * shape.out_cols()]);
    let mut lse = bench.memory(&vec![f32::NAN; all * shape.q_heads]);
    let mut error = bench.memory(&[0u32]);
    let needed = kernels.attention_workspace_len(&tables, true, all, shape, split).unwrap();
    let mut workspace = bench.memory(&vec![f32::NAN; needed]);
    let sinks = setting.changes.sinks(shape.q_heads).map(|sinks| bench.memory(&sinks));
    let args = JointAttention {
        pass: &tables,
        masks: true,
        qkv: if setting.separate {
            let masks = MaskProjections { q: rows(&mask_q), k: rows(&mask_k), v: rows(&mask_v) };
            Projections::Separate { q: rows(&q), masks: (tables.masks() > 0).then_some(masks) }
        } else {
            bench.view(&qkv).into()
        },
        cache: PagedKv { k: bench.view(&k), v: bench.view(&v), k_strides: strides, v_strides: strides },
        out: bench.view_mut(&mut out),
        lse: Some(bench.view_mut(&mut lse)),
        workspace: bench.view_mut(&mut workspace),
        shape,
        split,
        scores: ScoreChanges {
            window: setting.changes.window,
            soft_cap: setting.changes.soft_cap,
            sinks: sinks.as_ref().map(|sinks| bench.view(sinks)),
        },
        error: Some(bench.view_mut(&mut error)),
    };
    kernels.joint_attention(stream, &args).unwrap();
    drop(args);
    assert_eq!(bench.host(&error), [0]);
    let (out, lse) = (bench.host(&out), bench.host(&lse));

    let bits = |row: usize| -> RowBits {
        let out = &out[row * shape.out_cols()..][..shape.out_cols()];
        let lse = &lse[row * shape.q_heads..][..shape.q_heads];
        (out.iter().map(|x| x.bits()).collect(), lse.iter().map(|x| x.to_bits()).collect())
    };
    for row in all - setting.padding..all {
        let (out, lse) = bits(row);
        assert!(out.iter().all(|&x| x == 0) && lse.iter().all(|&x| f32::from_bits(x) == f32::NEG_INFINITY));
    }
    let (mut candidate, mut mask) = (0, sequences.iter().map(|s| s.candidates).sum::<usize>());
    let rows = sequences
        .iter()
        .map(|s| {
            let own = (candidate..candidate + s.candidates).chain(mask..mask + s.rows() - s.candidates);
            candidate += s.candidates;
            mask += s.rows() - s.candidates;
            own.map(bits).collect()
        })
        .collect();
    let traffic = bench.emulator().map(Simt::take_traffic).unwrap_or_default();
    Watched { rows, traffic, workspace_len: needed }
}

/// Compares the rows of a sequence with the reference.
///
/// With the unit roundoff u of the type, an output has an error of up to u from its own rounding, relative to its
/// magnitude Σ p·|v|, and an error of a similar size from the rounding of the weights: hence 2u. The logarithm of the sum
/// of the rounded weights is off by up to u. Errors of f32, and of weights that are subnormal in f16 (2⁻²⁵ of the largest
/// weight), are far smaller.
pub fn compare(setting: Setting, sequence: &Sequence, rows: &[RowBits]) -> Result<(), TestCaseError> {
    let shape = setting.shape;
    let heads = Heads { q_heads: shape.q_heads, kv_heads: shape.kv_heads, head_dim: shape.head_dim };
    let f64s = |bits: &[u16]| bits.iter().map(|&bits| setting.kind.value(bits)).collect::<Vec<f64>>();
    let roundoff = setting.kind.roundoff();
    let [keys, values] = sequence.cached(setting).map(|cached| f64s(&cached));
    let width = shape.kv_heads * shape.head_dim;
    let sinks = setting
        .changes
        .sinks(shape.q_heads)
        .map(|sinks| sinks.into_iter().map(f64::from).collect::<Vec<_>>());
    let changes = flexdraft_reference::attention::ScoreChanges {
        window: None, // the window decides below what a row sees
        soft_cap: setting.changes.soft_cap.map(f64::from),
        sinks: sinks.as_deref(),
    };
    for (r, (out, lse)) in rows.iter().enumerate() {
        let row = f64s(&sequence.row(setting, r));
        let mut own = [vec![], vec![]];
        let limit = match r.checked_sub(sequence.candidates) {
            None => sequence.start + r,
            Some(mask) => {
                let group = mask / sequence.slots;
                for slot in 0..sequence.slots {
                    let slot =
                        f64s(&sequence.row(setting, sequence.candidates + group * sequence.slots + slot));
                    own[0].extend_from_slice(&slot[shape.out_cols()..][..width]);
                    own[1].extend_from_slice(&slot[shape.out_cols() + width..]);
                }
                sequence.start + sequence.groups[group]
            }
        };
        let cached = setting.changes.first_seen(sequence.position(r)) * width..(limit + 1) * width;
        let seen = [
            KeysValues { keys: &keys[cached.clone()], values: &values[cached] },
            KeysValues { keys: &own[0], values: &own[1] },
        ];
        let exact = attend_with(heads, &row[..shape.out_cols()], &seen, &changes);
        for (i, &found) in out.iter().enumerate() {
            let error = (setting.kind.value(found) - exact.output[i]).abs() / exact.magnitude[i];
            prop_assert!(error < 2.0 * roundoff, "row {r}, element {i}: {error}");
        }
        for (found, exact) in lse.iter().zip(&exact.log_sum_exp) {
            let error = (f64::from(f32::from_bits(*found)) - exact).abs();
            prop_assert!(error < roundoff + 9e-5, "row {r}: log-sum-exp off by {error}");
        }
    }
    Ok(())
}
