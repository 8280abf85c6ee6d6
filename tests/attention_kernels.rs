//! Joint attention on the SIMT host: against the reference in f64, with every byte that no row may see set
//! to NaN, and bit for bit the same wherever a row is computed.

#![cfg(feature = "simt")]
#![allow(clippy::unwrap_used, missing_docs)]

mod simt_variant;

use flexdraft::backend::simt::{Checking, Copies, Traffic};
use flexdraft::backend::{Backend, Limits, Simt, SimtOptions};
use flexdraft::kernels::attention::{JointAttention, attention_workspace_len};
use flexdraft::kernels::{Kernels, KvStrides, PagedKv, Paging, PassTables};
use flexdraft::layout::{AttentionShape, Pass, SequenceRows};
use flexdraft_reference::attention::{Heads, KeysValues, attend};
use half::bf16;
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;
use simt_variant::checking;

const NAN: bf16 = bf16::from_bits(0x7fbf);

fn noise(seed: u64, len: usize) -> Vec<bf16> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bf16::from_f32((state >> 40) as f32 / (1u32 << 22) as f32 - 2.0)
    };
    (0..len).map(|_| next()).collect()
}

/// One sequence of a case.
#[derive(Clone, Debug)]
struct Sequence {
    start: usize,
    candidates: usize,
    groups: Vec<usize>,
    slots: usize,
    /// What its values are made from, with the name of candidate 0.
    seed: u64,
    first: usize,
}

impl Sequence {
    /// Candidate `i` alone: the step of autoregressive decoding at its position.
    fn candidate(&self, i: usize) -> Self {
        let (start, first) = (self.start + i, self.first + i);
        Self { start, first, candidates: 1, groups: vec![], ..self.clone() }
    }

    /// Group number `i` alone: the drafting pass after its acceptance.
    fn group(&self, i: usize) -> Self {
        Self { candidates: 0, groups: vec![self.groups[i]], ..self.clone() }
    }

    fn rows(&self) -> usize {
        self.candidates + self.groups.len() * self.slots
    }

    /// Cached positions that some row sees.
    fn length(&self) -> usize {
        self.start + self.candidates.max(self.groups.last().map_or(0, |last| last + 1))
    }

    /// q, k and v of a row, the same wherever the row is. Mask rows are told apart by their group.
    fn row(&self, shape: AttentionShape, row: usize) -> Vec<bf16> {
        let name = match row.checked_sub(self.candidates) {
            None => self.first + row,
            Some(mask) => 1000 + 100 * self.groups[mask / self.slots] + mask % self.slots,
        };
        noise(self.seed ^ (name as u64) << 32, shape.qkv_cols())
    }

    /// K and V of the cached positions, `[length, kv_heads · head_dim]`.
    fn cached(&self, shape: AttentionShape) -> [Vec<bf16>; 2] {
        [1, 2].map(|s| noise(self.seed ^ s << 20, self.length() * shape.kv_heads * shape.head_dim))
    }
}

/// How a case is run.
#[derive(Clone, Copy, Debug)]
struct Setting {
    shape: AttentionShape,
    split: usize,
    page_size: usize,
    head_major: bool,
    padding: usize,
    options: SimtOptions,
    /// Whether only tiles of 64 rows and two stages fit a CTA.
    small: bool,
    /// How many there are decides how many splits a CTA takes together.
    multiprocessors: u32,
}

/// Output and log-sum-exp of a row, as bits.
type RowBits = (Vec<u16>, Vec<u32>);

/// Every row of every sequence, in order.
fn run(setting: Setting, sequences: &[Sequence]) -> Vec<Vec<RowBits>> {
    run_watched(setting, sequences).0
}

/// What the kernels read and wrote.
fn traffic(setting: Setting, sequences: &[Sequence]) -> Vec<Traffic> {
    run_watched(setting, sequences).1
}

fn run_watched(setting: Setting, sequences: &[Sequence]) -> (Vec<Vec<RowBits>>, Vec<Traffic>) {
    let Setting { shape, split, page_size, .. } = setting;
    let simt = Simt::new(setting.options);
    let mut limits = Limits { multiprocessors: setting.multiprocessors, ..simt.limits() };
    if setting.small {
        limits.shared_bytes_per_cta = 99 << 10;
    }
    let kernels = Kernels::new(simt.limited(limits));
    let (simt, stream) = (kernels.backend(), kernels.backend().stream());

    // Page ids descend, and page 0 belongs to nobody.
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
    let strides = match setting.head_major {
        true => KvStrides::head_major(page_size, shape.kv_heads, shape.head_dim),
        false => KvStrides::token_major(page_size, shape.kv_heads, shape.head_dim),
    };
    let mut caches =
        [vec![NAN; page_count * page_size * kv_width], vec![NAN; page_count * page_size * kv_width]];
    for (sequence, pages) in sequences.iter().zip(&pages) {
        for (cache, values) in caches.iter_mut().zip(sequence.cached(shape)) {
            for (position, token) in values.chunks(kv_width).enumerate() {
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
    let mut tables = PassTables::new(simt, &stream, 5, counts.iter().copied().max().unwrap_or(0)).unwrap();
    tables.upload(simt, &stream, &layout, Paging { pages: page_count, page_size }).unwrap();

    let all: usize = sequences.iter().map(Sequence::rows).sum::<usize>() + setting.padding;
    let mut qkv = Vec::new();
    let candidates = sequences.iter().flat_map(|s| (0..s.candidates).map(move |row| (s, row)));
    let masks = sequences.iter().flat_map(|s| (s.candidates..s.rows()).map(move |row| (s, row)));
    for (sequence, row) in candidates.chain(masks) {
        let mut row_values = sequence.row(shape, row);
        if row < sequence.candidates {
            // Their k and v are in the cache; what is here must not matter.
            row_values[shape.out_cols()..].fill(NAN);
        }
        qkv.extend(row_values);
    }
    qkv.resize(all * shape.qkv_cols(), NAN);
    let mut out = vec![NAN; all * shape.out_cols()];
    let mut lse = vec![f32::NAN; all * shape.q_heads];
    let mut error = [0u32];
    let needed = attention_workspace_len(shape, all, tables.longest(), split).unwrap();
    let mut workspace = vec![f64::NAN; needed.div_ceil(2)];
    kernels
        .joint_attention(
            &stream,
            &JointAttention {
                pass: &tables,
                masks: true,
                qkv: stream.view(&qkv),
                cache: PagedKv {
                    k: stream.view(&caches[0]),
                    v: stream.view(&caches[1]),
                    k_strides: strides,
                    v_strides: strides,
                },
                out: stream.view_mut(&mut out),
                lse: Some(stream.view_mut(&mut lse)),
                workspace: stream.view_mut(bytemuck::cast_slice_mut(&mut workspace)),
                shape,
                split,
                error: Some(stream.view_mut(&mut error)),
            },
        )
        .unwrap();
    assert_eq!(error, [0]);

    let bits = |row: usize| -> RowBits {
        let out = &out[row * shape.out_cols()..][..shape.out_cols()];
        let lse = &lse[row * shape.q_heads..][..shape.q_heads];
        (out.iter().map(|x| x.to_bits()).collect(), lse.iter().map(|x| x.to_bits()).collect())
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
    (rows, simt.take_traffic())
}

/// The rows of a sequence against the reference.
fn compare(setting: Setting, sequence: &Sequence, rows: &[RowBits]) -> Result<(), TestCaseError> {
    let shape = setting.shape;
    let heads = Heads { q_heads: shape.q_heads, kv_heads: shape.kv_heads, head_dim: shape.head_dim };
    let f64s = |values: &[bf16]| values.iter().map(|x| x.to_f64()).collect::<Vec<f64>>();
    let [keys, values] = sequence.cached(shape).map(|cached| f64s(&cached));
    let width = shape.kv_heads * shape.head_dim;
    for (r, (out, lse)) in rows.iter().enumerate() {
        let row = f64s(&sequence.row(shape, r));
        let mut own = [vec![], vec![]];
        let limit = match r.checked_sub(sequence.candidates) {
            None => sequence.start + r,
            Some(mask) => {
                let group = mask / sequence.slots;
                for slot in 0..sequence.slots {
                    let slot =
                        f64s(&sequence.row(shape, sequence.candidates + group * sequence.slots + slot));
                    own[0].extend_from_slice(&slot[shape.out_cols()..][..width]);
                    own[1].extend_from_slice(&slot[shape.out_cols() + width..]);
                }
                sequence.start + sequence.groups[group]
            }
        };
        let end = (limit + 1) * width;
        let seen = [
            KeysValues { keys: &keys[..end], values: &values[..end] },
            KeysValues { keys: &own[0], values: &own[1] },
        ];
        let exact = attend(heads, &row[..shape.out_cols()], &seen);
        for (i, &found) in out.iter().enumerate() {
            let error = (bf16::from_bits(found).to_f64() - exact.output[i]).abs() / exact.magnitude[i];
            prop_assert!(error < 1.0 / 128.0, "row {r}, element {i}: {error}");
        }
        for (found, exact) in lse.iter().zip(&exact.log_sum_exp) {
            let error = (f64::from(f32::from_bits(*found)) - exact).abs();
            prop_assert!(error < 4e-3, "row {r}: log-sum-exp off by {error}");
        }
    }
    Ok(())
}

prop_compose! {
    fn sequence(longest: usize)(
        start in prop_oneof![
            4 => 0usize..longest,
            1 => Just(63),
            1 => Just(64),
            1 => Just(127),
            // Spans of splits of 64 end at multiples of 256.
            1 => 250usize..260,
            1 => 700usize..780,
        ],
        candidates in prop_oneof![4 => 0usize..6, 1 => 30usize..70],
        groups in prop_oneof![
            4 => prop::collection::btree_set(0usize..6, 0..4),
            1 => prop::collection::btree_set(70usize..130, 1..3),
        ],
        slots in 1usize..9,
        seed in any::<u64>(),
    ) -> Sequence {
        Sequence { start, candidates, groups: groups.into_iter().collect(), slots, seed, first: 0 }
    }
}

prop_compose! {
    fn setting()(
        head_dim in prop::sample::select(vec![64usize, 128]),
        ratio in prop::sample::select(vec![1usize, 2, 3, 4, 8, 16]),
        kv_heads in 1usize..3,
        page_size in prop::sample::select(vec![16usize, 32, 64, 128]),
        split in prop::sample::select(vec![64usize, 64, 128, 512]),
        head_major in any::<bool>(),
        padding in 0usize..3,
        late in any::<bool>(),
        schedule in 0u64..4,
        small in any::<bool>(),
        multiprocessors in prop::sample::select(vec![2u32, 4, 24]),
    ) -> Setting {
        let kv_heads = if ratio > 4 { 1 } else { kv_heads };
        let shape = AttentionShape { q_heads: ratio * kv_heads, kv_heads, head_dim };
        let copies = if late { Copies::Late } else { Copies::Eager };
        let options = SimtOptions { checking: checking(Checking::Off), copies, schedule };
        Setting { shape, split, page_size, head_major, padding, options, small, multiprocessors }
    }
}

/// A case in `share` of those that `PROPTEST_CASES` asks for (256 without it).
fn config(share: u32) -> ProptestConfig {
    let cases = ProptestConfig::default().cases.div_ceil(share);
    ProptestConfig {
        cases,
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("proptest-regressions"))),
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config(8))]

    #[test]
    fn the_reference_agrees(setting in setting(), sequences in prop::collection::vec(sequence(260), 1..4)) {
        for (sequence, rows) in sequences.iter().zip(run(setting, &sequences)) {
            compare(setting, sequence, &rows)?;
        }
    }

    #[test]
    fn a_row_has_the_same_bits_wherever_it_is(
        setting in setting(),
        other in setting(),
        sequences in prop::collection::vec(sequence(200), 1..4),
    ) {
        let together = run(setting, &sequences);
        // The same arithmetic under other paging, tiles, order, copies and limits.
        let other = Setting { shape: setting.shape, split: setting.split, ..other };
        let reversed: Vec<Sequence> = sequences.iter().rev().cloned().collect();
        let mut permuted = run(other, &reversed);
        permuted.reverse();
        prop_assert!(together == permuted, "permuted");
        for (sequence, rows) in sequences.iter().zip(&together) {
            prop_assert!(run(other, std::slice::from_ref(sequence))[0] == *rows, "alone");
            // Candidate i is the row of autoregressive decoding at its position. Its cache is as long as it
            // sees, so what comes later has no influence.
            let row = sequence.candidates / 2;
            if row < sequence.candidates {
                let ar = run(other, &[sequence.candidate(row)]).remove(0);
                prop_assert!(ar[0] == rows[row], "autoregressive");
            }
            // Group a of a joint pass is the group of a pass that drafts after acceptance.
            let group = sequence.groups.len() / 2;
            if group < sequence.groups.len() {
                let drafted = run(other, &[sequence.group(group)]).remove(0);
                let first = sequence.candidates + group * sequence.slots;
                prop_assert!(drafted == rows[first..first + sequence.slots], "drafted alone");
            }
        }
    }

    #[test]
    fn checked_runs_find_nothing_and_say_the_same(setting in setting(), sequence in sequence(140)) {
        let sequences = [sequence];
        let options = SimtOptions { checking: checking(Checking::Accesses), ..setting.options };
        let checked = Setting { options, ..setting };
        prop_assert!(run(setting, &sequences) == run(checked, &sequences), "other bits");
    }
}

/// Two sequences whose rows fill one block each: every visible K and V is needed once. States go through memory
/// for as many parts as the keys are divided into, and not at all where that is one.
#[test]
fn bytes_are_those_of_the_floor() {
    let shape = AttentionShape { q_heads: 4, kv_heads: 2, head_dim: 64 };
    let options = SimtOptions { checking: Checking::Accesses, ..SimtOptions::default() };
    // Keys 0..=302 in splits of 128, one an item; in spans of 512; keys 0..=1535 in spans of 512.
    for (start, multiprocessors, parts) in [(300, 24, 3), (300, 4, 1), (1533, 2, 3)] {
        let sequence = |seed| Sequence { start, candidates: 3, groups: vec![0, 2], slots: 4, seed, first: 0 };
        let sequences = [sequence(1), sequence(2)];
        let setting = Setting {
            shape,
            split: 128,
            page_size: 32,
            head_major: false,
            padding: 0,
            options,
            small: false,
            multiprocessors,
        };
        let traffic = traffic(setting, &sequences);
        let bytes = |kernel: &str, operand: &str| {
            let of = |t: &&Traffic| t.kernel.starts_with(kernel) && t.operand == operand;
            traffic.iter().find(of).map(|t| (t.read, t.written))
        };
        let rows: u64 = 2 * (3 + 2 * 4);
        let (token, states) = (2 * 64 * 2, rows * 4 * 64 * 4 + rows * 4 * 8);
        for operand in ["k cache", "v cache"] {
            let read = 2 * (start as u64 + 3) * token;
            assert_eq!(bytes("joint_attention", operand), Some((read, 0)));
        }
        // Every row's q; mask rows' k and v as well.
        assert_eq!(bytes("joint_attention", "qkv"), Some((rows * 4 * 64 * 2 + 2 * 8 * 2 * token, 0)));
        let out = Some((0, rows * 4 * 64 * 2));
        if parts == 1 {
            assert_eq!(bytes("joint_attention", "workspace"), Some((0, 0)));
            assert_eq!(bytes("joint_attention", "out"), out);
            assert_eq!(bytes("attention_merge", "out"), None, "there is nothing to merge");
        } else {
            // Of every row a state of each part, and of the mask rows one of their slots.
            let written = parts * states + states * 16 / rows;
            assert_eq!(bytes("joint_attention", "workspace"), Some((0, written)));
            assert_eq!(bytes("attention_merge", "workspace"), Some((written, 0)));
            assert_eq!(bytes("attention_merge", "out"), out);
        }
    }
}

#[test]
fn what_does_not_fit() {
    let kernels = Kernels::new(Simt::new(SimtOptions::default()));
    let (simt, stream) = (kernels.backend(), kernels.backend().stream());
    let mut tables = PassTables::new(simt, &stream, 1, 2).unwrap();
    let rows = SequenceRows { pages: &[1, 0], start: 20, candidates: 2, groups: vec![1], slots: 3 };
    let paging = Paging { pages: 2, page_size: 16 };
    tables.upload(simt, &stream, &Pass { sequences: vec![rows] }, paging).unwrap();
    let sound = AttentionShape { q_heads: 2, kv_heads: 1, head_dim: 64 };
    let strides = KvStrides::token_major(16, 1, 64);
    let message = |shape: AttentionShape, lens: [usize; 5], strides: KvStrides, split: usize| {
        let [qkv, cache, out, lse, workspace] = lens;
        let (qkv, cache) = (vec![bf16::ONE; qkv], vec![bf16::ONE; cache]);
        let (mut out, mut lse, mut workspace) = (vec![NAN; out], vec![f32::NAN; lse], vec![0f32; workspace]);
        let result = kernels.joint_attention(
            &stream,
            &JointAttention {
                pass: &tables,
                masks: true,
                qkv: stream.view(&qkv),
                cache: PagedKv {
                    k: stream.view(&cache),
                    v: stream.view(&cache),
                    k_strides: strides,
                    v_strides: strides,
                },
                out: stream.view_mut(&mut out),
                lse: Some(stream.view_mut(&mut lse)),
                workspace: stream.view_mut(&mut workspace),
                shape,
                split,
                error: None,
            },
        );
        let launched = out.iter().any(|x| x.to_bits() != NAN.to_bits());
        assert_eq!(launched, result.is_ok(), "launched");
        result.map_or_else(|error| error.to_string(), |()| "no error".into())
    };
    let needed = attention_workspace_len(sound, 5, 22, 64).unwrap();
    let lens = [5 * 256, 2 * 16 * 64, 5 * 128, 5 * 2, needed];
    assert_eq!(message(sound, lens, strides, 64), "no error");
    let with = |i: usize, len: usize| {
        let mut lens = lens;
        lens[i] = len;
        message(sound, lens, strides, 64)
    };
    let kernel = "joint_attention_d64_r64_s3";
    for (i, operand, len) in [(0, "qkv", lens[0]), (2, "out", lens[2]), (3, "lse", lens[3])] {
        let expected =
            |found| format!("{kernel}: operand `{operand}` has {found} elements, and {len} were expected");
        assert_eq!(with(i, len - 1), expected(len - 1));
        assert_eq!(with(i, 0), expected(0));
    }
    for (i, operand) in [(1, "k cache"), (4, "workspace")] {
        let (found, len) = (lens[i] - 1, lens[i]);
        let expected = format!("{kernel}: operand `{operand}` has {found} elements, and {len} were expected");
        assert_eq!(with(i, found), expected);
    }
    for (split, expected) in [(0, "split is 0"), (32, "split is 32"), (96, "split is 96")] {
        assert_eq!(
            message(sound, lens, strides, split),
            format!("{kernel}: {expected}; supported: multiples of 64")
        );
    }
    let shape = |q_heads, kv_heads, head_dim| {
        message(AttentionShape { q_heads, kv_heads, head_dim }, lens, strides, 64)
    };
    assert_eq!(shape(2, 1, 96), "joint_attention: head_dim is 96; supported: 64, 128");
    for (q_heads, kv_heads) in [(3, 2), (17, 1), (0, 1), (1, 0)] {
        let error = shape(q_heads, kv_heads, 64);
        assert!(
            error.ends_with(&format!("query heads is {q_heads}; supported: 1 to 16 for each KV head")),
            "{error}"
        );
    }
    let odd = KvStrides { token: 63, ..strides };
    let error = message(sound, lens, odd, 64);
    assert_eq!(error, format!("{kernel}: a stride of the cache is 63; supported: multiples of 8 elements"));
}
