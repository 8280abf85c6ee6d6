//! Tests that a candidate's row has the same bits alone and together with up to 16 others, over thousands of cached
//! keys.

use flexdraft::kernels::attention::DEFAULT_SPLIT;
use flexdraft::layout::AttentionShape;

use super::case::{Sequence, Setting, run};
use crate::halves::Kind;
use crate::processors::processors;
use crate::support::properties::more_than_usual;

const SHAPE: AttentionShape = AttentionShape { q_heads: 3, kv_heads: 1, head_dim: 64 };

/// The numbers of cached keys before the first candidate. The last two are beyond what the emulator computes in a second,
/// so they run only if more random cases than usual are asked for.
const KEYS: [usize; 3] = [2048, 7168, 16_384];

const MOST: usize = 17;

#[test]
fn a_candidate_has_its_bits_beside_any_number_of_others() {
    let (keys, step) = if more_than_usual() { (&KEYS[..], 1) } else { (&KEYS[..1], 15) };
    let cases = || keys.iter().flat_map(|&start| Kind::BOTH.map(|kind| (start, kind)));
    for (processor, (start, kind)) in
        processors().flat_map(|processor| cases().map(move |case| (processor, case)))
    {
        let setting =
            Setting { kind, split: DEFAULT_SPLIT, page_size: 64, ..Setting::of(SHAPE).on(processor) };
        let pass = |candidates| Sequence { start, candidates, groups: vec![], slots: 0, seed: 9, first: 0 };
        let together = run(setting, &[pass(MOST)]).remove(0);
        for count in (1..MOST).step_by(step) {
            let fewer = run(setting, &[pass(count)]).remove(0);
            assert!(fewer == together[..count], "{count} candidates after {start} keys in {kind:?}");
        }
        for row in (0..MOST).step_by(step) {
            let alone = run(setting, &[pass(MOST).candidate(row)]).remove(0);
            assert!(alone[0] == together[row], "candidate {row} alone after {start} keys");
        }
        println!(
            "{processor:?}, {start} cached keys in {kind:?}: each of {MOST} rows has its bits alone and beside the others."
        );
    }
}
