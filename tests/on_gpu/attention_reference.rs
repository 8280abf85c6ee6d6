//! Joint attention compared with the reference in f64, with NaN in all memory that no row may read, and with the same
//! bits for a row in every pass.

use flexdraft::kernels::attention::{DEFAULT_SPLIT, JointAttention, attention_workspace_len};
use flexdraft::kernels::{KvStrides, PagedKv, Paging, PassTables};
use flexdraft::layout::{AttentionShape, Pass, SequenceRows};
use flexdraft::runtime::Runtime;
use flexdraft_reference::attention::{Heads, KeysValues, attend};
use half::bf16;

use crate::bench::{Bench, halves};
use crate::{Case, everywhere, on_a_gpu};

const NAN: bf16 = bf16::from_bits(0x7fbf);

#[derive(Clone, Debug)]
struct Sequence {
    start: usize,
    candidates: usize,
    groups: Vec<usize>,
    slots: usize,
    /// The seed of the sequence's values, together with the name of candidate 0.
    seed: u64,
    first: usize,
}

impl Sequence {
    fn new(seed: u64, start: usize, candidates: usize, groups: &[usize], slots: usize) -> Self {
        Sequence { start, candidates, groups: groups.to_vec(), slots, seed, first: 0 }
    }

    /// Returns a sequence with candidate `i` alone: the autoregressive decode step at its position.
    fn candidate(&self, i: usize) -> Self {
        let (start, first) = (self.start + i, self.first + i);
        Self { start, first, candidates: 1, groups: vec![], ..self.clone() }
    }

    /// Returns a sequence with group number `i` alone: the drafting pass after its accepted length.
    fn group(&self, i: usize) -> Self {
        Self { candidates: 0, groups: vec![self.groups[i]], ..self.clone() }
    }

    fn masks(&self) -> usize {
        self.groups.len() * self.slots
    }

    /// Returns the number of cached positions that some row sees.
    fn seen(&self) -> usize {
        self.start + self.candidates.max(self.groups.last().map_or(0, |last| last + 1))
    }

    /// Returns q, k and v of a row, which do not depend on the pass that the row is in.
    fn row(&self, shape: AttentionShape, row: usize) -> Vec<bf16> {
        let name = match row.checked_sub(self.candidates) {
            None => self.first + row,
            Some(mask) => 1000 + 100 * self.groups[mask / self.slots] + mask % self.slots,
        };
        halves(self.seed ^ (name as u64) << 32, shape.qkv_cols())
    }

    /// Returns K and V of the cached positions, `[seen, kv_heads · head_dim]`. Longer results begin with the shorter
    /// ones.
    fn cached(&self, shape: AttentionShape) -> [Vec<bf16>; 2] {
        [1, 2].map(|s| halves(self.seed ^ s << 20, self.seen() * shape.kv_heads * shape.head_dim))
    }
}

#[derive(Clone, Copy, Debug)]
struct Setting {
    shape: AttentionShape,
    page_size: usize,
    split: usize,
    head_major: bool,
}

/// A sequence's output and log-sum-exps, row after row.
type Rows = (Vec<bf16>, Vec<f32>);

/// Returns the page ids of each sequence, from the last page of memory down, and the number of pages. No sequence has
/// page 0.
fn paged(sequences: &[Sequence], page_size: usize) -> (Vec<Vec<u32>>, usize) {
    let counts: Vec<usize> = sequences.iter().map(|s| s.seen().div_ceil(page_size)).collect();
    let mut next = counts.iter().sum::<usize>() as u32 + 1;
    let all = next as usize;
    let pages = counts.iter().map(|&count| {
        next -= count as u32;
        (next..next + count as u32).rev().collect()
    });
    (pages.collect(), all)
}

/// Runs joint attention over a pass.
fn run<B: Runtime>(bench: &Bench<B>, setting: Setting, sequences: &[Sequence]) -> Vec<Rows> {
    let Setting { shape, page_size, split, head_major } = setting;
    let Bench { kernels, stream } = bench;
    let runtime = kernels.runtime();
    let (pages, page_count) = paged(sequences, page_size);
    let strides = match head_major {
        true => KvStrides::head_major(page_size, shape.kv_heads, shape.head_dim),
        false => KvStrides::token_major(page_size, shape.kv_heads, shape.head_dim),
    };
    let width = shape.kv_heads * shape.head_dim;
    let [mut k, mut v] = [(); 2].map(|()| vec![NAN; page_count * page_size * width]);
    for (sequence, pages) in sequences.iter().zip(&pages) {
        for (cache, values) in [&mut k, &mut v].into_iter().zip(sequence.cached(shape)) {
            for (position, token) in values.chunks(width).enumerate() {
                let page = pages[position / page_size] as usize;
                for (head, values) in token.chunks(shape.head_dim).enumerate() {
                    let at = page * strides.page + position % page_size * strides.token + head * strides.head;
                    cache[at..at + shape.head_dim].copy_from_slice(values);
                }
            }
        }
    }
    let rows_of = sequences.iter().zip(&pages).map(|(s, pages)| SequenceRows {
        pages,
        start: s.start,
        candidates: s.candidates,
        groups: s.groups.clone(),
        slots: s.slots,
    });
    let pass = Pass { sequences: rows_of.collect() };
    let most = pages.iter().map(Vec::len).max().unwrap();
    let mut tables = PassTables::new(runtime, stream, sequences.len(), most).unwrap();
    tables.upload(runtime, stream, &pass, Paging { pages: page_count, page_size }).unwrap();

    let mut qkv = Vec::new();
    for sequence in sequences {
        for row in 0..sequence.candidates {
            let mut values = sequence.row(shape, row);
            // The k and v of candidates are in the cache; the values here must not matter.
            values[shape.out_cols()..].fill(NAN);
            qkv.extend(values);
        }
    }
    for sequence in sequences {
        (0..sequence.masks()).for_each(|row| qkv.extend(sequence.row(shape, sequence.candidates + row)));
    }
    let rows = qkv.len() / shape.qkv_cols();
    let (k, v, qkv) = (bench.memory(&k), bench.memory(&v), bench.memory(&qkv));
    let mut out = bench.memory(&vec![NAN; rows * shape.out_cols()]);
    let mut lse = bench.memory(&vec![f32::NAN; rows * shape.q_heads]);
    let needed = attention_workspace_len(shape, rows, tables.longest(), split).unwrap();
    let (mut workspace, mut error) = (bench.memory(&vec![f32::NAN; needed]), bench.memory(&[0u32]));
    let args = JointAttention {
        pass: &tables,
        masks: true,
        qkv: runtime.view(stream, &qkv),
        cache: PagedKv {
            k: runtime.view(stream, &k),
            v: runtime.view(stream, &v),
            k_strides: strides,
            v_strides: strides,
        },
        out: runtime.view_mut(stream, &mut out),
        lse: Some(runtime.view_mut(stream, &mut lse)),
        workspace: runtime.view_mut(stream, &mut workspace),
        shape,
        split,
        error: Some(runtime.view_mut(stream, &mut error)),
    };
    kernels.joint_attention(stream, &args).unwrap();
    drop(args);
    assert_eq!(bench.host(&error, 1), [0]);

    let (out, lse) = (bench.host(&out, rows * shape.out_cols()), bench.host(&lse, rows * shape.q_heads));
    let (mut candidate, mut mask) = (0, sequences.iter().map(|s| s.candidates).sum::<usize>());
    sequences
        .iter()
        .map(|s| {
            let own = [candidate..candidate + s.candidates, mask..mask + s.masks()];
            [candidate, mask] = own.clone().map(|rows| rows.end);
            let of = |cols: usize| own.clone().map(|rows| rows.start * cols..rows.end * cols);
            let [o, l] = [of(shape.out_cols()), of(shape.q_heads)];
            (o.map(|rows| &out[rows]).concat(), l.map(|rows| &lse[rows]).concat())
        })
        .collect()
}

/// Compares the rows of a sequence with the reference.
fn check(shape: AttentionShape, sequence: &Sequence, (out, lse): &Rows) {
    let heads = Heads { q_heads: shape.q_heads, kv_heads: shape.kv_heads, head_dim: shape.head_dim };
    let f64s = |values: &[bf16]| values.iter().map(|x| x.to_f64()).collect::<Vec<f64>>();
    let [keys, values] = sequence.cached(shape).map(|cached| f64s(&cached));
    let (width, q_cols) = (shape.kv_heads * shape.head_dim, shape.out_cols());
    for (r, (out, lse)) in out.chunks(q_cols).zip(lse.chunks(shape.q_heads)).enumerate() {
        let row = f64s(&sequence.row(shape, r));
        let mut own = [vec![], vec![]];
        let limit = match r.checked_sub(sequence.candidates) {
            None => sequence.start + r,
            Some(mask) => {
                let first = sequence.candidates + mask / sequence.slots * sequence.slots;
                for slot in first..first + sequence.slots {
                    let slot = f64s(&sequence.row(shape, slot));
                    own[0].extend_from_slice(&slot[q_cols..][..width]);
                    own[1].extend_from_slice(&slot[q_cols + width..]);
                }
                sequence.start + sequence.groups[mask / sequence.slots]
            }
        };
        let end = (limit + 1) * width;
        let seen = [
            KeysValues { keys: &keys[..end], values: &values[..end] },
            KeysValues { keys: &own[0], values: &own[1] },
        ];
        let exact = attend(heads, &row[..q_cols], &seen);
        for (i, found) in out.iter().enumerate() {
            let error = (found.to_f64() - exact.output[i]).abs() / exact.magnitude[i];
            assert!(error < 1.0 / 128.0, "row {r}, element {i}: {error}");
        }
        for (found, exact) in lse.iter().zip(&exact.log_sum_exp) {
            let error = (f64::from(*found) - exact).abs();
            assert!(error < 4e-3, "row {r}: log-sum-exp off by {error}");
        }
    }
}

/// A pass that is compared with the reference, and whose sequences are compared with passes of each sequence alone, in
/// another order and in parts.
struct Joint {
    setting: Setting,
    sequences: Vec<Sequence>,
}

impl Joint {
    fn compared(&self, rows: &[Rows]) {
        for (sequence, rows) in self.sequences.iter().zip(rows) {
            check(self.setting.shape, sequence, rows);
        }
    }
}

fn bits((out, lse): &Rows) -> (Vec<u16>, Vec<u32>) {
    (out.iter().map(|x| x.to_bits()).collect(), lse.iter().map(|x| x.to_bits()).collect())
}

impl Case for Joint {
    type Output = Vec<Rows>;

    fn run<B: Runtime>(&self, bench: &Bench<B>) -> Vec<Rows> {
        let Joint { setting, sequences } = self;
        let together = run(bench, *setting, sequences);
        let AttentionShape { q_heads, .. } = setting.shape;
        let part = |(out, lse): &Rows, rows: std::ops::Range<usize>| {
            let cols = setting.shape.out_cols();
            bits(&(
                out[rows.start * cols..rows.end * cols].to_vec(),
                lse[rows.start * q_heads..rows.end * q_heads].to_vec(),
            ))
        };
        // The same arithmetic with other paging.
        let other = Setting {
            page_size: if setting.page_size == 16 { 64 } else { 16 },
            head_major: !setting.head_major,
            ..*setting
        };
        let reversed: Vec<Sequence> = sequences.iter().rev().cloned().collect();
        let permuted = run(bench, other, &reversed);
        for (i, (sequence, rows)) in sequences.iter().zip(&together).enumerate() {
            assert!(bits(&permuted[sequences.len() - 1 - i]) == bits(rows), "sequence {i} in another order");
            let alone = run(bench, other, std::slice::from_ref(sequence));
            assert!(bits(&alone[0]) == bits(rows), "sequence {i} alone");
            // Its cache ends at its own position, so later positions have no influence.
            for row in 0..sequence.candidates.min(3) {
                let ar = run(bench, other, &[sequence.candidate(row)]);
                assert!(bits(&ar[0]) == part(rows, row..row + 1), "candidate {row} of sequence {i}");
            }
            for group in 0..sequence.groups.len().min(3) {
                let drafted = run(bench, other, &[sequence.group(group)]);
                let first = sequence.candidates + group * sequence.slots;
                let joint = part(rows, first..first + sequence.slots);
                assert!(bits(&drafted[0]) == joint, "group {group} of sequence {i}");
            }
        }
        together
    }
}

#[test]
fn small_passes() {
    for (head_dim, kv_heads, ratio, page_size, split, head_major) in [
        (64, 2, 1, 16, 64, false),
        (64, 1, 3, 128, 64, true),
        (128, 1, 4, 32, 128, true),
        (128, 1, 16, 64, 64, false),
    ] {
        let shape = AttentionShape { q_heads: ratio * kv_heads, kv_heads, head_dim };
        let setting = Setting { shape, page_size, split, head_major };
        // Contexts around the edges of tiles and splits, up to several splits, a sequence without a group, and a
        // sequence without a context.
        let sequences = vec![
            Sequence::new(1, 190, 5, &[0, 2, 4], 5),
            Sequence::new(2, 63, 1, &[], 0),
            Sequence::new(3, 64, 0, &[2], 7),
            Sequence::new(4, 0, 2, &[0], 1),
        ];
        let case = Joint { setting, sequences };
        everywhere(&case, |rows| case.compared(rows));
    }
}

/// The shape of the released drafters: 15 draft tokens, a group for each accepted length, blocks of 16.
#[test]
fn the_released_shape() {
    let shape = AttentionShape { q_heads: 4, kv_heads: 1, head_dim: 128 };
    let setting = Setting { shape, page_size: 64, split: 64, head_major: false };
    let groups: Vec<usize> = (0..16).collect();
    let case = Joint { setting, sequences: vec![Sequence::new(5, 150, 16, &groups, 16)] };
    everywhere(&case, |rows| case.compared(rows));
}

/// The heads of Qwen3-8B and SmolLM2-135M, with their usual page sizes.
const RELEASED: [(AttentionShape, usize); 2] = [
    (AttentionShape { q_heads: 32, kv_heads: 8, head_dim: 128 }, 64),
    (AttentionShape { q_heads: 9, kv_heads: 3, head_dim: 64 }, 16),
];

/// Long contexts with many splits of the usual size, which would take the SIMT emulator too long.
#[test]
fn long_contexts() {
    for (shape, page_size) in RELEASED {
        let start = if shape.head_dim == 128 { 8190 } else { 5000 };
        let setting = Setting { shape, page_size, split: DEFAULT_SPLIT, head_major: false };
        let sequences = vec![
            Sequence::new(6, start, 5, &[0, 1, 4], 16),
            Sequence::new(7, 700, 16, &[3, 15], 16),
            Sequence::new(8, start / 2, 1, &[], 0),
        ];
        let case = Joint { setting, sequences };
        on_a_gpu(&case, |rows| case.compared(rows));
    }
}

/// A step of eight sequences that verify 4 draft tokens and draft after each of 5 accepted lengths.
#[test]
fn a_batch_of_the_released_heads() {
    let sequence =
        |context: usize, i: usize| Sequence::new(20 + i as u64, context + 37 * i, 5, &[0, 1, 2, 3, 4], 16);
    for (shape, page_size) in RELEASED {
        let setting = Setting { shape, page_size, split: DEFAULT_SPLIT, head_major: false };
        let case = Joint { setting, sequences: (0..8).map(|i| sequence(800, i)).collect() };
        on_a_gpu(&case, |rows| case.compared(rows));
        // One short sequence, so that the test case itself runs without a GPU.
        let case = Joint { setting, sequences: vec![sequence(20, 0)] };
        if shape.kv_heads == 3 {
            everywhere(&case, |rows| case.compared(rows));
        }
    }
}
