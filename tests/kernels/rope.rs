//! Tests of rotation and append: the reference's norms and rotations, keys and values in their places in the cache, and
//! no other byte changed.

use std::collections::BTreeSet;
use std::ops::Range;

use flexdraft::kernels::rope::{NormRopeAppend, RopeTable};
use flexdraft::kernels::{HeadRows, HeadRowsMut, KvStrides, PagedKvMut, Paging, PassTables, ProjectionsMut};
use flexdraft::layout::{AttentionShape, Pass, RowKind, SequenceRows};
use half::{bf16, f16};
use proptest::prelude::*;

use crate::halves::{Half, Kind, NAN, halves};
use crate::processors::{Bench, Operand};
use crate::rows::{on_every_processor, on_every_runtime};
use crate::support::properties::properties;

/// A random pass whose pages are in a shuffled order.
#[derive(Clone, Debug)]
struct AnyPass {
    sequences: Vec<(usize, usize, Vec<usize>, usize)>,
    page_size: usize,
    seed: u64,
}

prop_compose! {
    fn any_pass()(
        sequences in prop::collection::vec(
            (prop_oneof![0usize..300, 100_000usize..131_000], 0usize..4, prop_oneof![prop::collection::btree_set(0usize..5, 0..3), prop::collection::btree_set(190usize..250, 1..3)], 1usize..5),
            0..4,
        ),
        page_size in prop::sample::select(vec![1usize, 7, 16, 48, 64, 128]),
        seed in any::<u64>(),
    ) -> AnyPass {
        let sequences = sequences
            .into_iter()
            .map(|(start, candidates, groups, slots)| {
                // Groups see no position after the candidates, if there are candidates.
                let within = |group: usize| if candidates > 0 { group % candidates } else { group };
                let groups: BTreeSet<usize> = groups.into_iter().map(within).collect();
                (start, candidates, groups.into_iter().collect(), slots)
            })
            .collect();
        AnyPass { sequences, page_size, seed }
    }
}

impl AnyPass {
    /// Returns the page ids of each sequence, and the total number of pages. Most pages of a long context are the same
    /// page, which no row of this pass is in.
    fn pages(&self) -> (Vec<Vec<u32>>, usize) {
        let mut next = 1;
        let pages = self
            .sequences
            .iter()
            .map(|(start, candidates, groups, _)| {
                let end = start + candidates.max(&groups.last().map_or(0, |last| last + 1));
                let mut pages = vec![0; end.div_ceil(self.page_size)];
                for page in &mut pages[start / self.page_size..] {
                    *page = next;
                    next += 1;
                }
                pages
            })
            .collect();
        (pages, next as usize)
    }
}

proptest! {
    #![proptest_config(properties(16))]

    #[test]
    fn norm_rope_append(
        pass in any_pass(),
        (head_dim, kind) in (prop::sample::select(vec![64usize, 128]), prop::sample::select(Kind::BOTH.to_vec())),
        (kv_heads, ratio) in (1usize..3, 1usize..4),
        normed in any::<bool>(),
        (head_major, separate) in any::<(bool, bool)>(),
        padding in 0usize..3,
    ) {
        let q_heads = kv_heads * ratio;
        let append =
            AppendCase { pass, kind, head_dim, kv_heads, q_heads, normed, head_major, separate, padding };
        on_every_processor(append.pass.seed, |bench| append.check(bench))?;
    }
}

/// Some columns of the fused rows in memory of their own, with poison between rows.
struct Part<T: Half> {
    columns: Range<usize>,
    stride: usize,
    memory: Operand<T>,
}

impl<T: Half> Part<T> {
    fn new(bench: &Bench, rows: &[T], width: usize, columns: Range<usize>) -> Self {
        // Strides of q, k and v differ.
        let stride = columns.len() + 8 * (1 + columns.start / 64 % 3);
        let mut elements = Vec::new();
        for (at, row) in rows.chunks(width).enumerate() {
            elements.extend(&row[columns.clone()]);
            elements.resize((at + 1) * stride, T::from_bits(NAN));
        }
        Part { columns, stride, memory: bench.memory(&elements) }
    }

    /// Writes the rows to their columns of the fused rows, and checks that nothing between rows has changed.
    fn write_back(&self, bench: &Bench, rows: &mut [T], width: usize) {
        for (from, to) in bench.host(&self.memory).chunks(self.stride).zip(rows.chunks_mut(width)) {
            let (own, between) = from.split_at(self.columns.len());
            to[self.columns.clone()].copy_from_slice(own);
            assert!(between.iter().all(|x| x.bits() == NAN));
        }
    }
}

/// A test case that rotates the rows of a random pass and appends its candidates to the cache.
#[derive(Clone, Debug)]
struct AppendCase {
    pass: AnyPass,
    /// The type of the rows and of the cache.
    kind: Kind,
    head_dim: usize,
    kv_heads: usize,
    q_heads: usize,
    normed: bool,
    head_major: bool,
    /// True if q, k and v are in separate tensors.
    separate: bool,
    padding: usize,
}

impl AppendCase {
    fn check(&self, bench: &Bench) -> Result<(), TestCaseError> {
        match self.kind {
            Kind::Bf16 => self.check_with::<bf16>(bench),
            Kind::F16 => self.check_with::<f16>(bench),
        }
    }

    fn check_with<T: Half>(&self, bench: &Bench) -> Result<(), TestCaseError> {
        let AppendCase {
            ref pass, head_dim, kv_heads, q_heads, normed, head_major, separate, padding, ..
        } = *self;
        let f64s = |values: &[T]| values.iter().map(|x| x.f64()).collect::<Vec<f64>>();
        let Bench { kernels, stream } = bench;
        let (pages, page_count) = pass.pages();
        let paging = Paging { pages: page_count, page_size: pass.page_size };
        let sequences =
            pass.sequences.iter().zip(&pages).map(|((start, candidates, groups, slots), pages)| {
                SequenceRows {
                    pages,
                    start: *start,
                    candidates: *candidates,
                    groups: groups.clone(),
                    slots: *slots,
                }
            });
        let layout = Pass { sequences: sequences.collect() };
        let max_pages = pages.iter().map(Vec::len).max().unwrap_or(0);
        let mut tables = PassTables::new(bench.runtime(), stream, 4, max_pages).unwrap();
        tables.upload(bench.runtime(), stream, &layout, paging).unwrap();
        let described = layout.rows();
        let rows = described.len() + padding;
        prop_assert_eq!(tables.rows(), described.len());

        // The frequencies reach down to about one radian in a hundred thousand positions.
        let inv_freq: Vec<f32> =
            (0..head_dim / 2).map(|i| 1e5f32.powf(-2.0 * i as f32 / head_dim as f32)).collect();
        let frequencies = bench.memory(&inv_freq);
        let mut cos_sin_memory = bench.memory(&vec![f32::NAN; rows * head_dim]);
        let args = RopeTable {
            pass: &tables,
            inv_freq: bench.view(&frequencies),
            scale: 0.75,
            cos_sin: bench.view_mut(&mut cos_sin_memory),
        };
        kernels.rope_table(stream, &args).unwrap();
        drop(args);
        let cos_sin = bench.host(&cos_sin_memory);
        for (r, cos_sin) in cos_sin.chunks(head_dim).enumerate() {
            for (i, turn) in cos_sin.chunks(2).enumerate() {
                let (sin, cos) = match described.get(r) {
                    Some(row) => f64::from(row.position as f32 * inv_freq[i]).sin_cos(),
                    None => (0.0, 0.0),
                };
                let error =
                    (f64::from(turn[0]) - 0.75 * cos).abs().max((f64::from(turn[1]) - 0.75 * sin).abs());
                prop_assert!(error < 3e-7, "{error} in row {r}");
            }
        }

        let width = (q_heads + 2 * kv_heads) * head_dim;
        let before: Vec<T> = halves(pass.seed, rows * width);
        let weights = [3, 4].map(|s| {
            halves::<bf16>(pass.seed ^ s, head_dim).iter().map(|w| w.to_f32()).collect::<Vec<f32>>()
        });
        let strides = match head_major {
            true => KvStrides::head_major(pass.page_size, kv_heads, head_dim),
            false => KvStrides::token_major(pass.page_size, kv_heads, head_dim),
        };
        let untouched = vec![T::from_bits(NAN); page_count * pass.page_size * kv_heads * head_dim];
        let [mut k, mut v] = [(); 2].map(|()| bench.memory(&untouched));
        let (mut error, mut qkv) = (bench.memory(&[0u32]), bench.memory(&before));
        let [q_norm, k_norm] = [&weights[0], &weights[1]].map(|weights| bench.memory(weights));
        for kind in [RowKind::Candidates, RowKind::Masks] {
            let rows = match kind {
                RowKind::Candidates => 0..tables.candidates(),
                RowKind::Masks => tables.candidates()..tables.rows(),
            };
            let elements = rows.start * width..rows.end * width;
            let (q_end, k_end) = (q_heads * head_dim, (q_heads + kv_heads) * head_dim);
            let mut parts = [0..q_end, q_end..k_end, k_end..width]
                .map(|columns| Part::new(bench, &before[elements.clone()], width, columns));
            let [q, k_rows, v_rows] = &mut parts;
            let args = NormRopeAppend {
                pass: &tables,
                kind,
                qkv: if separate {
                    ProjectionsMut::Separate {
                        q: HeadRowsMut { stride: q.stride, view: bench.view_mut(&mut q.memory) },
                        k: HeadRowsMut { stride: k_rows.stride, view: bench.view_mut(&mut k_rows.memory) },
                        v: HeadRows { stride: v_rows.stride, view: bench.view(&v_rows.memory) },
                    }
                } else {
                    bench.view_mut(&mut qkv).into()
                },
                cos_sin: bench.view(&cos_sin_memory),
                norms: normed.then(|| (bench.view(&q_norm), bench.view(&k_norm))),
                eps: 1e-6,
                cache: PagedKvMut {
                    k: bench.view_mut(&mut k),
                    v: bench.view_mut(&mut v),
                    k_strides: strides,
                    v_strides: strides,
                },
                shape: AttentionShape { q_heads, kv_heads, head_dim },
                error: Some(bench.view_mut(&mut error)),
            };
            kernels.norm_rope_append(stream, &args).unwrap();
            drop(args);
            if separate {
                let mut fused = bench.host(&qkv);
                for part in &parts {
                    part.write_back(bench, &mut fused[elements.clone()], width);
                }
                bench.write(&fused, &mut qkv, 0);
            }
        }
        prop_assert_eq!(bench.host(&error), [0]);
        let (k, v, qkv) = (bench.host(&k), bench.host(&v), bench.host(&qkv));

        let (mut expected_k, mut expected_v) = (untouched.clone(), untouched);
        for (r, (found, before)) in qkv.chunks(width).zip(before.chunks(width)).enumerate() {
            let Some(row) = described.get(r) else {
                prop_assert_eq!(found, before);
                continue;
            };
            // The elements of the cache where one head of a candidate's k or v belongs.
            let candidate = r < tables.candidates();
            let page =
                pages[row.sequence].get(row.position / pass.page_size).map_or(0, |&page| page as usize);
            let token = page * strides.page + row.position % pass.page_size * strides.token;
            let cached =
                |kv_head: usize| token + kv_head * strides.head..token + kv_head * strides.head + head_dim;
            for (head, (found, before)) in found.chunks(head_dim).zip(before.chunks(head_dim)).enumerate() {
                let k_head = head.checked_sub(q_heads);
                if let Some(v_head) = k_head.and_then(|head| head.checked_sub(kv_heads)) {
                    prop_assert_eq!(found, before);
                    if candidate {
                        expected_v[cached(v_head)].copy_from_slice(before);
                    }
                    continue;
                }
                let found = match k_head.filter(|_| candidate) {
                    Some(k_head) => {
                        prop_assert_eq!(found, before);
                        expected_k[cached(k_head)].copy_from_slice(&k[cached(k_head)]);
                        &k[cached(k_head)]
                    }
                    None => found,
                };
                let mut exact = f64s(before);
                if normed {
                    let weight: Vec<f64> =
                        weights[usize::from(head >= q_heads)].iter().map(|&w| f64::from(w)).collect();
                    exact = flexdraft_reference::norm::rms_norm(&exact, &weight, 1e-6);
                }
                let (low, high) = exact.split_at(head_dim / 2);
                for i in 0..head_dim / 2 {
                    let (cos, sin) = (cos_sin[r * head_dim + 2 * i], cos_sin[r * head_dim + 2 * i + 1]);
                    let (cos, sin) = (f64::from(cos), f64::from(sin));
                    let magnitude = low[i].abs() + high[i].abs();
                    let near = |found: T, exact: f64| {
                        (found.f64() - exact).abs() < magnitude * T::ROUNDOFF * 1.02 + 1e-6
                    };
                    prop_assert!(near(found[i], low[i] * cos - high[i] * sin));
                    prop_assert!(near(found[head_dim / 2 + i], high[i] * cos + low[i] * sin));
                }
            }
        }
        let bits = |values: &[T]| values.iter().map(|value| value.bits()).collect::<Vec<u16>>();
        prop_assert!(bits(&k) == bits(&expected_k) && bits(&v) == bits(&expected_v));
        Ok(())
    }
}

/// Returns a case with three sequences: one with several groups, one without a group, and one without a candidate.
fn three_sequences(head_dim: usize, kv_heads: usize, q_heads: usize, page_size: usize) -> AppendCase {
    let sequences = vec![(300, 4, vec![0, 2, 3], 5), (63, 1, vec![], 0), (17, 0, vec![2], 16)];
    let (pass, normed) = (AnyPass { sequences, page_size, seed: 1 }, head_dim == 128);
    let kind = if page_size == 16 { Kind::F16 } else { Kind::Bf16 };
    let (head_major, separate, padding) = (normed, normed, 1);
    AppendCase { pass, kind, head_dim, kv_heads, q_heads, normed, head_major, separate, padding }
}

/// The attention heads and page sizes of Qwen3-8B, which norms q and k, and of SmolLM2-135M.
#[test]
fn heads_of_released_models() {
    for append in [three_sequences(128, 8, 32, 64), three_sequences(64, 3, 9, 16)] {
        on_every_processor(1, |bench| append.check(bench)).unwrap();
    }
}

#[test]
fn is_the_same_on_every_runtime() {
    for append in [three_sequences(128, 2, 6, 32), three_sequences(64, 2, 6, 16)] {
        on_every_runtime(|bench| append.check(bench));
    }
}

/// Returns what the rotation by `turn` (cosine, sine) appends to the cache of a k head and a v head in f16, all of whose
/// elements are `x`: the lower and the upper half of k, and v.
fn appended(bench: &Bench, x: f32, turn: [f32; 2]) -> [Vec<f16>; 3] {
    let Bench { kernels, stream } = bench;
    let mut tables = PassTables::new(bench.runtime(), stream, 1, 1).unwrap();
    let rows = SequenceRows { pages: &[0], start: 0, candidates: 1, groups: vec![], slots: 0 };
    let paging = Paging { pages: 1, page_size: 1 };
    tables.upload(bench.runtime(), stream, &Pass { sequences: vec![rows] }, paging).unwrap();
    let mut qkv = bench.memory(&vec![f16::from_f32(x); 3 * 64]);
    let cos_sin = bench.memory(&turn.repeat(32));
    let [mut k, mut v] = [(); 2].map(|()| bench.memory(&[f16::from_bits(NAN); 64]));
    let strides = KvStrides::token_major(1, 1, 64);
    let args = NormRopeAppend {
        pass: &tables,
        kind: RowKind::Candidates,
        qkv: bench.view_mut(&mut qkv).into(),
        cos_sin: bench.view(&cos_sin),
        norms: None,
        eps: 0.0,
        cache: PagedKvMut {
            k: bench.view_mut(&mut k),
            v: bench.view_mut(&mut v),
            k_strides: strides,
            v_strides: strides,
        },
        shape: AttentionShape { q_heads: 1, kv_heads: 1, head_dim: 64 },
        error: None,
    };
    kernels.norm_rope_append(stream, &args).unwrap();
    drop(args);
    let k = bench.host(&k);
    [k[..32].to_vec(), k[32..].to_vec(), bench.host(&v)]
}

/// A result above the range of f16 becomes infinity, from the middle between 65504 and 65536 on, and v is copied.
#[test]
fn what_exceeds_f16_becomes_infinity() {
    on_every_processor(0, |bench| {
        // x cos − x sin, and x cos + x sin.
        let all = |x: f16, len: usize| vec![x; len];
        let largest = f16::MAX;
        let cases = [
            (65504.0, [0.5, 0.5], [f16::ZERO, largest]),
            // The sums are 15.9 and 16.05 above 65504, and the differences below.
            (65504.0, [1.0, 0.000_243], [largest, largest]),
            (65504.0, [1.0, 0.000_245], [f16::from_f32(65472.0), f16::INFINITY]),
            (-65504.0, [1.0, 1.0], [f16::ZERO, f16::NEG_INFINITY]),
        ];
        for (x, turn, [low, high]) in cases {
            let found = appended(bench, x, turn);
            prop_assert_eq!(
                found,
                [all(low, 32), all(high, 32), all(f16::from_f32(x), 64)],
                "{} {:?}",
                x,
                turn
            );
        }
        Ok(())
    })
    .unwrap();
}
