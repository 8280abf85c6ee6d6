//! The probe: the measurements of a simulated machine that a policy may make before the replay begins.

use flexdraft::decode::{CostModel, StepShape};

use crate::machine::{Machine, Rows};
use crate::recording::Random;

/// Batch sizes of the probe, ascending.
const BATCHES: [usize; 4] = [1, 4, 16, 64];
/// Number of times that each step runs.
const REPEATS: usize = 3;
/// Simulated seconds after which the probe ends.
const SECONDS: f64 = 0.8;
/// Cached positions of each sequence.
const CACHED: usize = 64;
/// Largest difference of a probed duration from the machine's.
const NOISE: f64 = 0.1;

/// Returns a cost model that was fitted to a short probe of `machine`: steps without drafts, with a separate drafting
/// pass after half of a block and after a whole block, and with all mask groups.
pub fn probed(machine: &Machine, slots: usize) -> CostModel {
    let (mut model, mut noise, mut spent) = (CostModel::default(), Random(99), 0.0);
    for batch in BATCHES {
        for (verified, in_pass, apart) in
            [(0, false, false), (slots / 2, false, true), (slots - 1, false, true), (slots - 1, true, false)]
        {
            // All mask groups of many sequences take longer than a probe may.
            if in_pass && batch > 16 {
                continue;
            }
            let candidates = verified + 1;
            let groups = if in_pass { candidates } else { 0 };
            let rows = Rows { candidates, logits: candidates, groups, apart, slots, cached: CACHED };
            let all = |number: usize| batch * number;
            let shape = StepShape {
                sequences: batch,
                candidates: all(candidates),
                reads: 0,
                mask_rows: all(groups * slots),
                cached: all(CACHED),
                group_cached: all(CACHED * groups),
                draft_rows: if apart { all(slots) } else { 0 },
                draft_cached: if apart { all(CACHED) } else { 0 },
            };
            for _ in 0..REPEATS {
                if spent > SECONDS {
                    return model;
                }
                let factor = 1.0 + NOISE * (2.0 * noise.uniform() - 1.0);
                let seconds = machine.seconds(&vec![rows; batch]) * factor;
                spent += seconds;
                model.observe(&shape, seconds);
            }
        }
    }
    model
}
