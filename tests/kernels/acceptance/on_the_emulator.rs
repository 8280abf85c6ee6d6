//! Tests of acceptance that need the SIMT emulator: the bytes that the kernels read.

use flexdraft::acceptance::Rule;
use flexdraft::layout::GroupSet;
use flexdraft::runtime::SimtOptions;
use flexdraft::runtime::simt::Checking;
use flexdraft::sampling::SamplingParams;

use super::oracle::check;
use super::run::run;
use super::sequences::Sequence;
use crate::processors::{Bench, Processor};

/// Acceptance skips chunks of the vocabulary without an id that top-k keeps; here all kept ids are in one of eight
/// chunks. Each launch runs twice: once reading every id, and once with the largest logits of the target's chunks,
/// which allow it to skip chunks.
#[test]
fn chunks_of_the_target_without_a_kept_id_are_not_read() {
    let vocab = 8192;
    let row = |seed: usize| -> Vec<f32> {
        let high = |id: usize| if (3000..3006).contains(&id) { 9.0 + (id % 3) as f32 } else { 0.0 };
        (0..vocab).map(|id| ((id * 7 + seed) % 11) as f32 / 4.0 + high(id)).collect()
    };
    for rule in [Rule::Rejection, Rule::Block] {
        let sequence = Sequence {
            rule,
            params: SamplingParams { top_k: 3, ..SamplingParams::at_temperature(0.7) },
            groups: GroupSet::default(),
            position: 7,
            seed: 5,
            target: vec![row(1), row(2), row(3)],
            draft: Some(vec![row(4), row(5)]),
            tokens: vec![3002, 3005],
        };
        // The test uses race mode even in runs under sanitizers, because only race mode counts bytes.
        let options = SimtOptions { checking: Checking::Accesses, ..SimtOptions::default() };
        let bench = Bench::on(Processor::Emulator, options);
        let outcome = run::<f32>(&bench, vocab, std::slice::from_ref(&sequence));
        check(&sequence, &outcome.verdicts[0], &outcome.committed[0]).unwrap();
        let read: Vec<u64> = bench
            .emulator()
            .unwrap()
            .take_traffic()
            .iter()
            .filter(|t| t.kernel.starts_with("accept") && ["target", "draft"].contains(&t.operand))
            .map(|t| t.read)
            .collect();
        let (every, kept) = read.split_at(read.len() / 2);
        let (every, kept): (u64, u64) = (every.iter().sum(), kept.iter().sum());
        assert!(every > 2 * 4 * 8192 && kept > 0 && kept * 7 < every, "{rule:?}: {kept} bytes of {every}");
    }
}
