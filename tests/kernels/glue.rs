//! The kernels around the matrix products on the SIMT emulator, compared with the reference row by row, with all memory
//! outside their operands poisoned.

use flexdraft::kernels::glue::{
    Add, Embed, Gather, NormRopeAppend, Residual, RmsNorm, RopeTable, SiluAdd, SiluMul,
};
use flexdraft::kernels::{Kernels, KvStrides, PagedKvMut, Paging, PassTables};
use flexdraft::layout::{AttentionShape, Pass, RowKind, SequenceRows};
use flexdraft::runtime::simt::{Checking, Copies};
use flexdraft::runtime::{Simt, SimtOptions};
use half::bf16;
use proptest::prelude::*;

use crate::support::noise::halves;
use crate::support::properties::properties;

/// Returns kernels with access checks, unless another variant is asked for, and with the given order of threads.
fn kernels(schedule: u64) -> Kernels<Simt> {
    let checking = crate::support::simt_variant::checking(Checking::Accesses);
    Kernels::new(Simt::new(SimtOptions { checking, copies: Copies::Eager, schedule }))
}

fn f64s(values: &[bf16]) -> Vec<f64> {
    values.iter().map(|value| value.to_f64()).collect()
}

/// True if `found` is `exact` rounded to bf16 after f32 arithmetic.
fn close(found: bf16, exact: f64) -> bool {
    (found.to_f64() - exact).abs() <= exact.abs() / 256.0 * 1.01 + 1e-6
}

const POISON: bf16 = bf16::from_bits(0x7fbf);

proptest! {
    #![proptest_config(properties(16))]

    #[test]
    fn embedding_and_gather(
        eighths in 1usize..40,
        ids in prop::collection::vec(-2i32..9, 0..6),
        seed in any::<u64>(),
    ) {
        let (cols, vocab) = (8 * eighths, 7usize);
        let kernels = kernels(seed % 4);
        let stream = kernels.runtime().stream();
        let table = halves(seed, vocab * cols);
        let mut error = [0u32];
        let mut out = vec![POISON; ids.len() * cols];
        let mut gathered = out.clone();
        kernels.embed(&stream, &Embed {
            ids: stream.view(&ids),
            table: stream.view(&table),
            out: stream.view_mut(&mut out),
            error: Some(stream.view_mut(&mut error)),
            cols,
        }).unwrap();
        let wrong = |id: &i32| !(0..7).contains(id);
        prop_assert_eq!(error, [if ids.iter().any(wrong) { 2 } else { 0 }]);
        error = [0];
        kernels.gather(&stream, &Gather {
            indices: stream.view(&ids),
            x: stream.view(&table),
            out: stream.view_mut(&mut gathered),
            error: Some(stream.view_mut(&mut error)),
            cols,
        }).unwrap();
        // Index −1 asks for a row of zeros.
        prop_assert_eq!(error, [if ids.iter().any(|id| wrong(id) && *id != -1) { 16 } else { 0 }]);
        let zeros = vec![bf16::ZERO; cols];
        for (row, &id) in out.chunks(cols).zip(&ids) {
            let expected = usize::try_from(id).ok().and_then(|id| table.chunks(cols).nth(id)).unwrap_or(&zeros);
            prop_assert_eq!(row, expected);
        }
        prop_assert_eq!(gathered, out);
    }

    #[test]
    fn norm_with_and_without_a_residual(
        eighths in 1usize..180,
        rows in 0usize..4,
        residual in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let cols = 8 * eighths;
        let kernels = kernels(seed % 4);
        let stream = kernels.runtime().stream();
        let (before, delta) = (halves(seed, rows * cols), halves(seed ^ 1, rows * cols));
        let weight: Vec<f32> = halves(seed ^ 2, cols).iter().map(|w| w.to_f32() * 1.01).collect();
        let run = |x: &mut Vec<bf16>, out: &mut Vec<bf16>, delta: &[bf16]| {
            kernels.rms_norm(&stream, &RmsNorm {
                x: match residual {
                    true => Residual::Add { x: stream.view_mut(x), delta: stream.view(delta) },
                    false => Residual::Is(stream.view(x)),
                },
                weight: stream.view(&weight),
                out: stream.view_mut(out),
                eps: 1e-5,
            })
        };
        let (mut x, mut out) = (before.clone(), vec![POISON; rows * cols]);
        run(&mut x, &mut out, &delta).unwrap();
        let sums: Vec<bf16> = before.iter().zip(&delta).map(|(x, d)| bf16::from_f32(x.to_f32() + d.to_f32())).collect();
        prop_assert_eq!(&x, if residual { &sums } else { &before });
        let mut added = before.clone();
        kernels.add(&stream, &Add { x: stream.view_mut(&mut added), delta: stream.view(&delta) }).unwrap();
        prop_assert_eq!(&added, &sums);
        let weights: Vec<f64> = weight.iter().map(|&w| f64::from(w)).collect();
        for (x, out) in x.chunks(cols).zip(out.chunks(cols)) {
            let exact = flexdraft_reference::norm::rms_norm(&f64s(x), &weights, 1e-5);
            for (&out, exact) in out.iter().zip(exact) {
                prop_assert!(close(out, exact), "{out} for {exact}");
            }
        }
        // A row has the same bits in a batch of its own.
        for row in 0..rows {
            let range = row * cols..(row + 1) * cols;
            let (mut x, mut alone) = (before[range.clone()].to_vec(), vec![POISON; cols]);
            run(&mut x, &mut alone, &delta[range.clone()]).unwrap();
            prop_assert_eq!(&alone, &out[range]);
        }
    }

    #[test]
    fn activations(
        eighths in 1usize..140,
        rows in 0usize..4,
        absent in prop::sample::select(vec![-1, 2, -2]),
        seed in any::<u64>(),
    ) {
        let cols = 8 * eighths;
        let kernels = kernels(seed % 4);
        let stream = kernels.runtime().stream();
        let x = halves(seed, rows * 2 * cols);
        let mut out = vec![POISON; rows * cols];
        let (from, to) = (stream.view(&x), stream.view_mut(&mut out));
        kernels.silu_mul(&stream, &SiluMul { x: from, out: to, cols }).unwrap();
        let silu = |x: f64| x / (1.0 + (-x).exp());
        for (row, out) in x.chunks(2 * cols).zip(out.chunks(cols)) {
            for (i, &out) in out.iter().enumerate() {
                let exact = silu(row[i].to_f64()) * row[cols + i].to_f64();
                prop_assert!(close(out, exact), "{out} for {exact}");
            }
        }

        let bonus = halves(seed ^ 5, 2 * cols);
        // Bonus rows −1, 2 and −2 do not exist. Index −1 asks for no bonus row and is no error.
        let owner: Vec<i32> = (0..rows).map(|row| [0, absent, 1][row % 3]).collect();
        let before = x[..rows * cols].to_vec();
        let (mut hidden, mut error) = (before.clone(), [0]);
        kernels.silu_add(&stream, &SiluAdd {
            x: stream.view_mut(&mut hidden),
            bonus: stream.view(&bonus),
            owner: stream.view(&owner),
            error: Some(stream.view_mut(&mut error)),
            cols,
        }).unwrap();
        prop_assert_eq!(error, [if rows > 1 && absent != -1 { 16 } else { 0 }]);
        for row in 0..rows {
            for c in 0..cols {
                let (before, found) = (before[row * cols + c], hidden[row * cols + c]);
                match usize::try_from(owner[row]).ok().and_then(|owner| bonus.get(owner * cols + c)) {
                    Some(bonus) => {
                        let exact = silu(f64::from(before.to_f32() + bonus.to_f32()));
                        prop_assert!(close(found, exact), "{found} for {exact}");
                    }
                    None => prop_assert_eq!(found, before),
                }
            }
        }
    }
}

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
        page_size in prop::sample::select(vec![16usize, 32, 64, 128]),
        seed in any::<u64>(),
    ) -> AnyPass {
        let sequences = sequences
            .into_iter()
            .map(|(start, candidates, groups, slots)| (start, candidates, groups.into_iter().collect(), slots))
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
        head_dim in prop::sample::select(vec![64usize, 128]),
        (kv_heads, ratio) in (1usize..3, 1usize..4),
        normed in any::<bool>(),
        head_major in any::<bool>(),
        padding in 0usize..3,
    ) {
        let kernels = kernels(pass.seed % 4);
        let (simt, stream) = (kernels.runtime(), kernels.runtime().stream());
        let (pages, page_count) = pass.pages();
        let paging = Paging { pages: page_count, page_size: pass.page_size };
        let sequences = pass.sequences.iter().zip(&pages).map(|((start, candidates, groups, slots), pages)| {
            SequenceRows { pages, start: *start, candidates: *candidates, groups: groups.clone(), slots: *slots }
        });
        let layout = Pass { sequences: sequences.collect() };
        let max_pages = pages.iter().map(Vec::len).max().unwrap_or(0);
        let mut tables = PassTables::new(simt, &stream, 4, max_pages).unwrap();
        tables.upload(simt, &stream, &layout, paging).unwrap();
        let described = layout.rows();
        let rows = described.len() + padding;
        prop_assert_eq!(tables.rows(), described.len());

        // Frequencies down to one turn in a hundred thousand positions.
        let inv_freq: Vec<f32> = (0..head_dim / 2).map(|i| 1e5f32.powf(-2.0 * i as f32 / head_dim as f32)).collect();
        let mut cos_sin = vec![f32::NAN; rows * head_dim];
        kernels.rope_table(&stream, &RopeTable {
            pass: &tables,
            inv_freq: stream.view(&inv_freq),
            scale: 0.75,
            cos_sin: stream.view_mut(&mut cos_sin),
        }).unwrap();
        for (r, cos_sin) in cos_sin.chunks(head_dim).enumerate() {
            for (i, turn) in cos_sin.chunks(2).enumerate() {
                let (sin, cos) = match described.get(r) {
                    Some(row) => f64::from(row.position as f32 * inv_freq[i]).sin_cos(),
                    None => (0.0, 0.0),
                };
                let error = (f64::from(turn[0]) - 0.75 * cos).abs().max((f64::from(turn[1]) - 0.75 * sin).abs());
                prop_assert!(error < 3e-7, "{error} in row {r}");
            }
        }

        let q_heads = kv_heads * ratio;
        let width = (q_heads + 2 * kv_heads) * head_dim;
        let before = halves(pass.seed, rows * width);
        let weights = [3, 4].map(|s| halves(pass.seed ^ s, head_dim).iter().map(|w| w.to_f32()).collect::<Vec<f32>>());
        let strides = match head_major {
            true => KvStrides::head_major(pass.page_size, kv_heads, head_dim),
            false => KvStrides::token_major(pass.page_size, kv_heads, head_dim),
        };
        let untouched = vec![POISON; page_count * pass.page_size * kv_heads * head_dim];
        let (mut k, mut v, mut error, mut qkv) = (untouched.clone(), untouched.clone(), [0u32], before.clone());
        for kind in [RowKind::Candidates, RowKind::Masks] {
            kernels.norm_rope_append(&stream, &NormRopeAppend {
                pass: &tables,
                kind,
                qkv: stream.view_mut(&mut qkv),
                cos_sin: stream.view(&cos_sin),
                norms: normed.then(|| (stream.view(&weights[0]), stream.view(&weights[1]))),
                eps: 1e-6,
                cache: PagedKvMut {
                    k: stream.view_mut(&mut k),
                    v: stream.view_mut(&mut v),
                    k_strides: strides,
                    v_strides: strides,
                },
                shape: AttentionShape { q_heads, kv_heads, head_dim },
                error: Some(stream.view_mut(&mut error)),
            }).unwrap();
        }
        prop_assert_eq!(error, [0]);

        let (mut expected_k, mut expected_v) = (untouched.clone(), untouched);
        for (r, (found, before)) in qkv.chunks(width).zip(before.chunks(width)).enumerate() {
            let Some(row) = described.get(r) else {
                prop_assert_eq!(found, before);
                continue;
            };
            // The place of this head of a candidate's k or v in the cache.
            let candidate = r < tables.candidates();
            let page = pages[row.sequence].get(row.position / pass.page_size).map_or(0, |&page| page as usize);
            let token = page * strides.page + row.position % pass.page_size * strides.token;
            let cached = |kv_head: usize| token + kv_head * strides.head..token + kv_head * strides.head + head_dim;
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
                    let near = |found: bf16, exact: f64| (found.to_f64() - exact).abs() < magnitude / 250.0 + 1e-6;
                    prop_assert!(near(found[i], low[i] * cos - high[i] * sin));
                    prop_assert!(near(found[head_dim / 2 + i], high[i] * cos + low[i] * sin));
                }
            }
        }
        let bits = |values: &[bf16]| values.iter().map(|value| value.to_bits()).collect::<Vec<u16>>();
        prop_assert!(bits(&k) == bits(&expected_k) && bits(&v) == bits(&expected_v));
    }
}
