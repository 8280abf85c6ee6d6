//! The kernels around the matrix products, compared with the reference row by row, with all memory outside their operands
//! poisoned.

use flexdraft::kernels::activation::{SiluAdd, SiluMul};
use flexdraft::kernels::embedding::{Embed, Gather};
use flexdraft::kernels::norm::{Add, Residual, RmsNorm};
use flexdraft::kernels::rope::{NormRopeAppend, RopeTable};
use flexdraft::kernels::{KvStrides, PagedKvMut, Paging, PassTables};
use flexdraft::layout::{AttentionShape, Pass, RowKind, SequenceRows};
use flexdraft::runtime::SimtOptions;
use flexdraft::runtime::simt::{Checking, Copies};
use half::bf16;
use proptest::prelude::*;

use crate::processors::{Bench, Processor, processors, runtimes_agree};
use crate::support::close::{close, f32s};
use crate::support::noise::{halves, noise};
use crate::support::properties::properties;

/// Returns kernels on a processor; on the emulator with access checks, unless another variant is asked for, and with the
/// order of threads `schedule`.
fn bench(processor: Processor, schedule: u64) -> Bench {
    let checking = crate::support::simt_variant::checking(Checking::Accesses);
    Bench::on(processor, SimtOptions { checking, copies: Copies::Eager, schedule })
}

fn f64s(values: &[bf16]) -> Vec<f64> {
    values.iter().map(|value| value.to_f64()).collect()
}

/// True if `found` is `exact` rounded to bf16 after f32 arithmetic.
fn is_rounded(found: bf16, exact: f64) -> bool {
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
        for processor in processors() {
            check_embedding_and_gather(&bench(processor, seed % 4), 8 * eighths, &ids, seed)?;
        }
    }

    #[test]
    fn norm_with_and_without_a_residual(
        eighths in 1usize..180,
        rows in 0usize..4,
        residual in any::<bool>(),
        seed in any::<u64>(),
    ) {
        for processor in processors() {
            check_norm(&bench(processor, seed % 4), 8 * eighths, rows, residual, seed)?;
        }
    }

    #[test]
    fn activations(
        eighths in 1usize..140,
        rows in 0usize..4,
        absent in prop::sample::select(vec![-1, 2, -2]),
        seed in any::<u64>(),
    ) {
        for processor in processors() {
            check_activations(&bench(processor, seed % 4), 8 * eighths, rows, absent, seed)?;
        }
    }
}

fn check_embedding_and_gather(
    bench: &Bench,
    cols: usize,
    ids: &[i32],
    seed: u64,
) -> Result<(), TestCaseError> {
    let Bench { kernels, stream } = bench;
    let vocab = 7;
    let contents = halves(seed, vocab * cols);
    let (table, indices) = (bench.memory(&contents), bench.memory(ids));
    let mut error = bench.memory(&[0u32]);
    let [mut out, mut gathered] = [(); 2].map(|()| bench.memory(&vec![POISON; ids.len() * cols]));
    let args = Embed {
        ids: bench.view(&indices),
        table: bench.view(&table),
        out: bench.view_mut(&mut out),
        error: Some(bench.view_mut(&mut error)),
        cols,
    };
    kernels.embed(stream, &args).unwrap();
    drop(args);
    let wrong = |id: &i32| !(0..7).contains(id);
    prop_assert_eq!(bench.host(&error), [if ids.iter().any(wrong) { 2 } else { 0 }]);
    bench.write(&[0], &mut error, 0);
    let args = Gather {
        indices: bench.view(&indices),
        x: bench.view(&table),
        out: bench.view_mut(&mut gathered),
        error: Some(bench.view_mut(&mut error)),
        cols,
    };
    kernels.gather(stream, &args).unwrap();
    drop(args);
    // Index −1 asks for a row of zeros.
    prop_assert_eq!(bench.host(&error), [if ids.iter().any(|id| wrong(id) && *id != -1) { 16 } else { 0 }]);
    let (out, zeros) = (bench.host(&out), vec![bf16::ZERO; cols]);
    for (row, &id) in out.chunks(cols).zip(ids) {
        let expected =
            usize::try_from(id).ok().and_then(|id| contents.chunks(cols).nth(id)).unwrap_or(&zeros);
        prop_assert_eq!(row, expected);
    }
    prop_assert_eq!(bench.host(&gathered), out);
    Ok(())
}

fn check_norm(
    bench: &Bench,
    cols: usize,
    rows: usize,
    residual: bool,
    seed: u64,
) -> Result<(), TestCaseError> {
    let Bench { kernels, stream } = bench;
    let (before, delta) = (halves(seed, rows * cols), halves(seed ^ 1, rows * cols));
    let weight: Vec<f32> = halves(seed ^ 2, cols).iter().map(|w| w.to_f32() * 1.01).collect();
    let weight_memory = bench.memory(&weight);
    // Returns x and the output of `rms_norm` afterwards.
    let run = |x: &[bf16], delta: &[bf16]| {
        let (mut x, delta) = (bench.memory(x), bench.memory(delta));
        let mut out = bench.memory(&vec![POISON; x.len()]);
        let args = RmsNorm {
            x: match residual {
                true => Residual::Add { x: bench.view_mut(&mut x), delta: bench.view(&delta) },
                false => Residual::Is(bench.view(&x)),
            },
            weight: bench.view(&weight_memory),
            out: bench.view_mut(&mut out),
            eps: 1e-5,
        };
        kernels.rms_norm(stream, &args).unwrap();
        drop(args);
        (bench.host(&x), bench.host(&out))
    };
    let (x, out) = run(&before, &delta);
    let sums: Vec<bf16> =
        before.iter().zip(&delta).map(|(x, d)| bf16::from_f32(x.to_f32() + d.to_f32())).collect();
    prop_assert_eq!(&x, if residual { &sums } else { &before });
    let (mut added, delta_memory) = (bench.memory(&before), bench.memory(&delta));
    let args = Add { x: bench.view_mut(&mut added), delta: bench.view(&delta_memory) };
    kernels.add(stream, &args).unwrap();
    drop(args);
    prop_assert_eq!(&bench.host(&added), &sums);
    let weights: Vec<f64> = weight.iter().map(|&w| f64::from(w)).collect();
    for (x, out) in x.chunks(cols).zip(out.chunks(cols)) {
        let exact = flexdraft_reference::norm::rms_norm(&f64s(x), &weights, 1e-5);
        for (&out, exact) in out.iter().zip(exact) {
            prop_assert!(is_rounded(out, exact), "{out} for {exact}");
        }
    }
    // A row has the same bits in a batch of its own.
    for row in 0..rows {
        let range = row * cols..(row + 1) * cols;
        let (_, alone) = run(&before[range.clone()], &delta[range.clone()]);
        prop_assert_eq!(&alone, &out[range]);
    }
    Ok(())
}

fn check_activations(
    bench: &Bench,
    cols: usize,
    rows: usize,
    absent: i32,
    seed: u64,
) -> Result<(), TestCaseError> {
    let Bench { kernels, stream } = bench;
    let x = halves(seed, rows * 2 * cols);
    let (from, mut out) = (bench.memory(&x), bench.memory(&vec![POISON; rows * cols]));
    let args = SiluMul { x: bench.view(&from), out: bench.view_mut(&mut out), cols };
    kernels.silu_mul(stream, &args).unwrap();
    drop(args);
    let silu = |x: f64| x / (1.0 + (-x).exp());
    for (row, out) in x.chunks(2 * cols).zip(bench.host(&out).chunks(cols)) {
        for (i, &out) in out.iter().enumerate() {
            let exact = silu(row[i].to_f64()) * row[cols + i].to_f64();
            prop_assert!(is_rounded(out, exact), "{out} for {exact}");
        }
    }

    let bonus = halves(seed ^ 5, 2 * cols);
    // Bonus rows −1, 2 and −2 do not exist. Index −1 asks for no bonus row and is no error.
    let owner: Vec<i32> = (0..rows).map(|row| [0, absent, 1][row % 3]).collect();
    let before = &x[..rows * cols];
    let (mut hidden, mut error) = (bench.memory(before), bench.memory(&[0]));
    let (bonus_memory, owner_memory) = (bench.memory(&bonus), bench.memory(&owner));
    let args = SiluAdd {
        x: bench.view_mut(&mut hidden),
        bonus: bench.view(&bonus_memory),
        owner: bench.view(&owner_memory),
        error: Some(bench.view_mut(&mut error)),
        cols,
    };
    kernels.silu_add(stream, &args).unwrap();
    drop(args);
    prop_assert_eq!(bench.host(&error), [if rows > 1 && absent != -1 { 16 } else { 0 }]);
    let hidden = bench.host(&hidden);
    for row in 0..rows {
        for c in 0..cols {
            let (before, found) = (before[row * cols + c], hidden[row * cols + c]);
            match usize::try_from(owner[row]).ok().and_then(|owner| bonus.get(owner * cols + c)) {
                Some(bonus) => {
                    let exact = silu(f64::from(before.to_f32() + bonus.to_f32()));
                    prop_assert!(is_rounded(found, exact), "{found} for {exact}");
                }
                None => prop_assert_eq!(found, before),
            }
        }
    }
    Ok(())
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
        let append = AppendCase { pass, head_dim, kv_heads, q_heads: kv_heads * ratio, normed, head_major, padding };
        for processor in processors() {
            append.check(&bench(processor, append.pass.seed % 4))?;
        }
    }
}

/// The rotation and append of a random pass's rows.
#[derive(Clone, Debug)]
struct AppendCase {
    pass: AnyPass,
    head_dim: usize,
    kv_heads: usize,
    q_heads: usize,
    normed: bool,
    head_major: bool,
    padding: usize,
}

impl AppendCase {
    fn check(&self, bench: &Bench) -> Result<(), TestCaseError> {
        let AppendCase { ref pass, head_dim, kv_heads, q_heads, normed, head_major, padding } = *self;
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

        // Frequencies down to one turn in a hundred thousand positions.
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
        let before = halves(pass.seed, rows * width);
        let weights =
            [3, 4].map(|s| halves(pass.seed ^ s, head_dim).iter().map(|w| w.to_f32()).collect::<Vec<f32>>());
        let strides = match head_major {
            true => KvStrides::head_major(pass.page_size, kv_heads, head_dim),
            false => KvStrides::token_major(pass.page_size, kv_heads, head_dim),
        };
        let untouched = vec![POISON; page_count * pass.page_size * kv_heads * head_dim];
        let [mut k, mut v] = [(); 2].map(|()| bench.memory(&untouched));
        let (mut error, mut qkv) = (bench.memory(&[0u32]), bench.memory(&before));
        let [q_norm, k_norm] = [&weights[0], &weights[1]].map(|weights| bench.memory(weights));
        for kind in [RowKind::Candidates, RowKind::Masks] {
            let args = NormRopeAppend {
                pass: &tables,
                kind,
                qkv: bench.view_mut(&mut qkv),
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
        }
        prop_assert_eq!(bench.host(&error), [0]);
        let (k, v, qkv) = (bench.host(&k), bench.host(&v), bench.host(&qkv));

        let (mut expected_k, mut expected_v) = (untouched.clone(), untouched);
        for (r, (found, before)) in qkv.chunks(width).zip(before.chunks(width)).enumerate() {
            let Some(row) = described.get(r) else {
                prop_assert_eq!(found, before);
                continue;
            };
            // The place of this head of a candidate's k or v in the cache.
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
                    let near =
                        |found: bf16, exact: f64| (found.to_f64() - exact).abs() < magnitude / 250.0 + 1e-6;
                    prop_assert!(near(found[i], low[i] * cos - high[i] * sin));
                    prop_assert!(near(found[head_dim / 2 + i], high[i] * cos + low[i] * sin));
                }
            }
        }
        let bits = |values: &[bf16]| values.iter().map(|value| value.to_bits()).collect::<Vec<u16>>();
        prop_assert!(bits(&k) == bits(&expected_k) && bits(&v) == bits(&expected_v));
        Ok(())
    }
}

/// Returns the results of all elementwise kernels: those that only copy and add, and those with rounding.
fn elementwise(bench: &Bench) -> (Vec<bf16>, Vec<f32>) {
    let Bench { kernels, stream } = bench;
    let (rows, cols) = (5, 328);
    let table = bench.memory(&halves(1, 7 * cols));
    let ids = bench.memory(&[3i32, 0, 6, 6, 1]);
    let mut out = bench.memory(&vec![bf16::ZERO; rows * cols]);
    kernels
        .embed(
            stream,
            &Embed {
                ids: bench.view(&ids),
                table: bench.view(&table),
                out: bench.view_mut(&mut out),
                error: None,
                cols,
            },
        )
        .unwrap();
    let mut exact = bench.host(&out);
    kernels
        .gather(
            stream,
            &Gather {
                indices: bench.view(&ids),
                x: bench.view(&table),
                out: bench.view_mut(&mut out),
                error: None,
                cols,
            },
        )
        .unwrap();
    exact.extend(bench.host(&out));
    let delta = bench.memory(&halves(2, rows * cols));
    kernels.add(stream, &Add { x: bench.view_mut(&mut out), delta: bench.view(&delta) }).unwrap();
    exact.extend(bench.host(&out));

    let weight = bench.memory(&noise(3, cols));
    let mut normed = bench.memory(&vec![bf16::ZERO; rows * cols]);
    kernels
        .rms_norm(
            stream,
            &RmsNorm {
                x: Residual::Add { x: bench.view_mut(&mut out), delta: bench.view(&delta) },
                weight: bench.view(&weight),
                out: bench.view_mut(&mut normed),
                eps: 1e-5,
            },
        )
        .unwrap();
    let mut near = f32s(&bench.host(&normed));
    let wide = bench.memory(&halves(4, rows * 2 * cols));
    kernels
        .silu_mul(stream, &SiluMul { x: bench.view(&wide), out: bench.view_mut(&mut normed), cols })
        .unwrap();
    near.extend(f32s(&bench.host(&normed)));
    kernels
        .silu_add(
            stream,
            &SiluAdd {
                x: bench.view_mut(&mut normed),
                bonus: bench.view(&table),
                owner: bench.view(&ids),
                error: None,
                cols,
            },
        )
        .unwrap();
    near.extend(f32s(&bench.host(&normed)));
    (exact, near)
}

#[test]
fn is_the_same_on_every_runtime() {
    runtimes_agree(elementwise, |(exact, near), (other_exact, other_near)| {
        assert!(exact == other_exact, "copies and sums are exact");
        close("elementwise", other_near, near, 1.0 / 128.0);
    });
    let sequences = vec![(300, 4, vec![0, 2, 3], 5), (63, 1, vec![], 0), (17, 0, vec![2], 16)];
    for (head_dim, page_size, normed) in [(64, 16, false), (128, 32, true)] {
        let pass = AnyPass { sequences: sequences.clone(), page_size, seed: 1 };
        let (kv_heads, q_heads, head_major, padding) = (2, 6, normed, 1);
        let append = AppendCase { pass, head_dim, kv_heads, q_heads, normed, head_major, padding };
        // Each result is compared with the reference.
        runtimes_agree(|bench| append.check(bench).unwrap(), |(), ()| {});
    }
}
