//! Tests what attention in f16 has that attention in bf16 has not: the precision, and the smaller range.

use flexdraft::layout::AttentionShape;
use half::{bf16, f16};

use super::case::{RowBits, Setting, compare, run, run_changed};
use super::items::sequence;
use crate::halves::Kind;
use crate::processors::processors;

fn setting(head_dim: usize, multiprocessors: u32) -> Setting {
    let shape = AttentionShape { q_heads: 4, kv_heads: 1, head_dim };
    Setting { kind: Kind::F16, multiprocessors, ..Setting::of(shape) }
}

/// Results in f16 are within the bound of f16, which the same results are not once they are rounded to bf16: neither the
/// rows of one state nor the merged rows went through bf16.
#[test]
fn the_bound_of_f16_refuses_results_in_bf16() {
    let sequence = sequence(300, 3, &[0, 2], 6);
    for processor in processors() {
        for (head_dim, multiprocessors) in [(64, 1), (128, 24)] {
            let setting = setting(head_dim, multiprocessors).on(processor);
            let mut rows = run(setting, std::slice::from_ref(&sequence)).remove(0);
            compare(setting, &sequence, &rows).unwrap();
            for (out, _) in &mut rows {
                for bits in out {
                    *bits = f16::from_f32(bf16::from_f32(f16::from_bits(*bits).to_f32()).to_f32()).to_bits();
                }
            }
            compare(setting, &sequence, &rows).unwrap_err();
        }
    }
}

/// A row's output lies between the values that the row sees, so values of the largest number of f16 overflow nowhere.
#[test]
fn the_largest_values() {
    let sequence = sequence(300, 3, &[1], 4);
    for (processor, multiprocessors) in processors().flat_map(|processor| [1, 24].map(|n| (processor, n))) {
        let setting = setting(64, multiprocessors).on(processor);
        for value in [f16::MAX, f16::MIN] {
            let rows: Vec<RowBits> = run_changed(setting, std::slice::from_ref(&sequence), |memory| {
                memory.fill_values(value.to_bits());
            })
            .remove(0);
            for (row, (out, _)) in rows.iter().enumerate() {
                assert!(out.iter().all(|&bits| bits == value.to_bits()), "{value} in row {row}");
            }
        }
    }
}

/// Scores may be far larger than the numbers of f16, because products and sums are f32.
#[test]
fn large_scores() {
    let sequence = sequence(100, 2, &[0], 3);
    for processor in processors() {
        let setting = setting(64, 1).on(processor);
        let rows = run_changed(setting, std::slice::from_ref(&sequence), |memory| {
            memory.fill_queries_and_keys(f16::from_f32(3000.0).to_bits());
        });
        for (out, lse) in rows.concat() {
            assert!(out.iter().all(|&bits| f16::from_bits(bits).is_finite()));
            // 64 products of 3000², divided by √64.
            let exact = 8.0 * 3000f64 * 3000.0;
            let close = |bits: &u32| (f64::from(f32::from_bits(*bits)) / exact - 1.0).abs() < 1e-6;
            assert!(lse.iter().all(close), "{lse:?}");
        }
    }
}
