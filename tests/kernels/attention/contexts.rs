//! Tests attention over contexts and caches that are larger than in all other tests.

use flexdraft::kernels::attention::{JointAttention, attention_workspace_len};
use flexdraft::kernels::{KvStrides, PagedKv, Paging, PassTables, ScoreChanges};
use flexdraft::layout::{AttentionShape, Pass, SequenceRows};
use flexdraft::runtime::simt::Checking;
use flexdraft::runtime::{Limits, SimtOptions};
use flexdraft_reference::attention::{Heads, KeysValues, attend};
use half::bf16;

use super::sample;
use crate::processors::{Bench, Operand, Processor, processors};
use crate::rows::POISON as NAN;
use crate::support::noise::halves;
use crate::support::properties::more_than_usual;
use crate::support::simt_variant::checking;

const SHAPE: AttentionShape = AttentionShape { q_heads: 1, kv_heads: 1, head_dim: 64 };

fn f64s(values: &[bf16]) -> Vec<f64> {
    values.iter().map(|x| x.to_f64()).collect()
}

/// Returns kernels without access checks, whose shadow memory would be too large for these caches.
fn bench(processor: Processor, multiprocessors: u32) -> Bench {
    let options = SimtOptions { checking: Checking::Off, ..SimtOptions::default() };
    Bench::limited(processor, options, |limits| Limits { multiprocessors, ..limits })
}

/// Runs attention for one candidate at the last of `length` positions, with splits of 64 keys.
fn attend_last(
    bench: &Bench,
    q: &[bf16],
    [k, v]: [&Operand<bf16>; 2],
    strides: KvStrides,
    (pages, paging, length): (&[u32], Paging, usize),
) -> Vec<bf16> {
    let Bench { kernels, stream } = bench;
    let rows = SequenceRows { pages, start: length - 1, candidates: 1, groups: vec![], slots: 0 };
    let mut tables = PassTables::new(bench.runtime(), stream, 1, pages.len()).unwrap();
    tables.upload(bench.runtime(), stream, &Pass { sequences: vec![rows] }, paging).unwrap();
    let mut qkv = q.to_vec();
    qkv.resize(SHAPE.qkv_cols(), NAN);
    let qkv = bench.memory(&qkv);
    let mut out = bench.memory(&vec![NAN; SHAPE.out_cols()]);
    let mut workspace = bench.memory(&vec![f32::NAN; attention_workspace_len(SHAPE, 1, length, 64).unwrap()]);
    let mut error = bench.memory(&[0u32]);
    let args = JointAttention {
        pass: &tables,
        masks: true,
        qkv: bench.view(&qkv).into(),
        cache: PagedKv { k: bench.view(k), v: bench.view(v), k_strides: strides, v_strides: strides },
        out: bench.view_mut(&mut out),
        lse: None,
        workspace: bench.view_mut(&mut workspace),
        shape: SHAPE,
        split: 64,
        scores: ScoreChanges::default(),
        error: Some(bench.view_mut(&mut error)),
    };
    kernels.joint_attention(stream, &args).unwrap();
    drop(args);
    assert_eq!(bench.host(&error), [0]);
    bench.host(&out)
}

fn compare(out: &[bf16], q: &[bf16], keys: &[f64], values: &[f64]) {
    let exact = attend(
        Heads { q_heads: SHAPE.q_heads, kv_heads: SHAPE.kv_heads, head_dim: SHAPE.head_dim },
        &f64s(q),
        &[KeysValues { keys, values }],
    );
    for (i, found) in out.iter().enumerate() {
        let error = (found.to_f64() - exact.output[i]).abs() / exact.magnitude[i];
        assert!(error < 1.0 / 128.0, "element {i}: {error}");
    }
}

/// Tests the longest context of the models, 131,072 keys: 2048 splits of one tile, 512 spans, and all levels of the
/// merge but two. A context of a million keys has these two as well. It takes seconds, so it runs only if more random
/// cases than usual are asked for.
#[test]
fn long_contexts() {
    if checking(Checking::Off) == Checking::Accesses {
        return; // nothing here is watched
    }
    // On 400 multiprocessors a CTA takes one split, and on 4 a whole span of four splits, so 400 multiprocessors leave
    // four times as many states to merge.
    for processor in processors() {
        let bits: Vec<Vec<u16>> =
            sample([4, 400], 2).map(|count| a_long_context(processor, 131_072, count)).collect();
        assert!(bits.windows(2).all(|pair| pair[0] == pair[1]), "divided by splits, other bits");
        if more_than_usual() {
            a_long_context(processor, 4095 * 4 * 64, 4);
        }
    }
}

/// Compares a row with the reference and returns its bits. The cache has a few pages, and the page table names each of
/// them many times.
fn a_long_context(processor: Processor, length: usize, multiprocessors: u32) -> Vec<u16> {
    let (page_size, pages) = (128, 5);
    let row = SHAPE.head_dim;
    let q: Vec<bf16> = halves(1, row);
    let [k, v] = [2, 3].map(|seed| halves(seed, pages * page_size * row));
    // The pages are in an irregular order, so that no two stretches of 2^n pages have the same contents.
    let table: Vec<u32> = (0..length / page_size).map(|i| (i * i % 7 * (i + 1) % pages) as u32).collect();
    let strides = KvStrides::token_major(page_size, SHAPE.kv_heads, SHAPE.head_dim);
    let paging = Paging { pages, page_size };
    let bench = bench(processor, multiprocessors);
    let [k_memory, v_memory] = [&k, &v].map(|contents| bench.memory(contents));
    let out = attend_last(&bench, &q, [&k_memory, &v_memory], strides, (&table, paging, length));
    let page =
        |values: &[bf16], page: u32| f64s(&values[page as usize * page_size * row..][..page_size * row]);
    let [keys, values] = [&k, &v].map(|x| table.iter().flat_map(|&id| page(x, id)).collect::<Vec<f64>>());
    compare(&out, &q, &keys, &values);
    out.iter().map(|x| x.to_bits()).collect()
}

/// Tests attention over two pages more than 2³¹ elements apart: the test reserves 4 GiB of address space and touches
/// only the pages at its ends. (AddressSanitizer would write to an eighth of it.)
#[cfg(all(target_pointer_width = "64", not(flexdraft_simt_sanitized)))]
#[test]
fn offsets_beyond_32_bits() {
    let (page_size, row) = (16, SHAPE.head_dim);
    let strides = KvStrides { page: (1 << 31) + 64, token: row, head: row };
    let (q, cached): (Vec<bf16>, Vec<bf16>) = (halves(1, row), halves(2, 30 * row));
    for processor in processors() {
        let bench = bench(processor, 4);
        let Some(mut memory) = bench.untouched(strides.page + page_size * row) else {
            eprintln!("SKIPPED: the system promises no 4 GiB of memory that is not going to be used");
            continue;
        };
        for (position, token) in cached.chunks(row).enumerate() {
            let at = position / page_size * strides.page + position % page_size * strides.token;
            bench.write(token, &mut memory, at);
        }
        let paging = Paging { pages: 2, page_size };
        let out = attend_last(&bench, &q, [&memory, &memory], strides, (&[0, 1], paging, 30));
        compare(&out, &q, &f64s(&cached), &f64s(&cached));
    }
}
