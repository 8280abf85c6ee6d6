//! Tests of the kernels of Chained Calibration: each kernel gives what the reference gives, independently of the rest of
//! the batch, and the three kernels together draw the reference's drafts.

mod choose;
mod score;
mod walk;

use flexdraft::kernels::sampling::RowStats;
use flexdraft::runtime::SimtOptions;
use flexdraft::runtime::simt::{Checking, Copies};
use flexdraft::sampling::SamplingParams;
use flexdraft_reference::chain::{Chain, ChainScores, TokenRows, chained_logits};
use flexdraft_reference::linear::Linear;
use flexdraft_reference::sample::{argmax, confidence};

use crate::processors::{Bench, Processor, processors, runtimes_agree};
use crate::sampling::generators::noise;
use crate::sampling::way::Way;
use choose::choose;
use score::{Factors, score};
use walk::{Walk, walk};

fn bench(processor: Processor, checking: Checking, schedule: u64) -> Bench {
    let checking = crate::support::simt_variant::checking(checking);
    Bench::on(processor, SimtOptions { checking, copies: Copies::Eager, schedule })
}

/// A draft of some rows that are drawn greedily, with the weights of a chain in double precision.
struct Model {
    vocab: usize,
    embed: Vec<f64>,
    lm_head: Linear<f64>,
    chain: Chain<f64>,
    logits: Vec<Vec<f32>>,
    bonus: u32,
}

const HIDDEN: usize = 12;

impl Model {
    fn new(vocab: usize, rank: usize, count: usize, rows: usize, seed: u64) -> Self {
        let wide = |seed, len, scale| noise(seed, len, scale).into_iter().map(f64::from).collect::<Vec<_>>();
        let linear = |seed, out| Linear::new(wide(seed, out * HIDDEN, 0.5), HIDDEN);
        let scores = ChainScores::Pair { before: linear(seed + 1, rank), after: linear(seed + 2, rank) };
        Model {
            vocab,
            embed: wide(seed + 3, vocab * HIDDEN, 1.0),
            lm_head: linear(seed + 4, vocab),
            chain: Chain { scores, top_k: count },
            logits: (0..rows).map(|row| noise(seed + 5 + row as u64, vocab, 2.0)).collect(),
            bonus: seed as u32 % vocab as u32,
        }
    }

    /// Returns the reference's tokens and confidences.
    fn draft(&self) -> (Vec<i32>, Vec<f64>) {
        let target = TokenRows { embed: &self.embed, lm_head: &self.lm_head };
        let mut before = self.bonus;
        let row = |logits: &Vec<f32>| {
            let logits: Vec<f64> = logits.iter().map(|&l| l.into()).collect();
            let chained = chained_logits(target, &self.chain, before, &[0.0; HIDDEN], &logits);
            before = argmax(&chained);
            (before as i32, confidence(&chained))
        };
        self.logits.iter().map(row).unzip()
    }

    /// Returns the factors of `ids` by the matrix A or B.
    fn factors(&self, after: bool, ids: &[i32]) -> Vec<Vec<f32>> {
        let ChainScores::Pair { before, after: b } = &self.chain.scores else { unreachable!() };
        let layer = if after { b } else { before };
        let embedding = |&id: &i32| &self.embed[id as usize * HIDDEN..][..HIDDEN];
        let factor = |id| layer.apply(embedding(id)).into_iter().map(|x| x as f32).collect();
        ids.iter().map(factor).collect()
    }

    /// Returns the kernels' statistics of the drawn rows.
    fn draft_by_kernels(&self, bench: &Bench) -> Vec<RowStats> {
        let (count, rows) = (self.chain.top_k.min(self.vocab), self.logits.len());
        let chosen = choose::<f32>(bench, &self.logits, None, false, count);
        let before = [vec![self.bonus as i32], chosen.ids.concat()].concat();
        let factors = Factors {
            count,
            before: self.factors(false, &before),
            after: self.factors(true, &chosen.ids.concat()),
            owners: vec![0; rows],
            drafts: 1,
        };
        let scores = score::<f32>(bench, &factors).0;
        let case = Walk {
            vocab: self.vocab,
            count,
            drafts: vec![rows],
            ids: chosen.ids,
            chosen: chosen.logits,
            scores,
            ways: vec![Way { params: SamplingParams::GREEDY, numbers: None, draft: -1 }; rows],
            padding: vec![false; rows],
        };
        walk(bench, &case).stats
    }
}

#[test]
fn a_draft_is_the_reference_s_from_end_to_end() {
    for processor in processors() {
        let bench = bench(processor, Checking::Off, 0);
        let mut chained = 0;
        for seed in 0..12 {
            let count = [1, 4, 16, 32][seed as usize % 4];
            let model = Model::new(200 + 100 * seed as usize, 10, count, 6, 100 * seed);
            let (tokens, confidences) = model.draft();
            let stats = model.draft_by_kernels(&bench);
            assert_eq!(stats.iter().map(|row| row.token).collect::<Vec<_>>(), tokens, "seed {seed}");
            for (row, confidence) in stats.iter().zip(confidences) {
                assert!((f64::from(row.confidence) - confidence).abs() < 1e-4);
            }
            let alone: Vec<i32> = model.logits.iter().map(|row| argmax(row) as i32).collect();
            chained += usize::from(tokens != alone);
        }
        assert!(chained >= 6, "the chain changes only {chained} of 12 drafts");
    }
}

#[test]
fn is_the_same_on_every_runtime() {
    let model = Model::new(3000, 24, 16, 15, 7);
    runtimes_agree(
        |bench| model.draft_by_kernels(bench),
        |expected, found| {
            for (expected, found) in expected.iter().zip(found) {
                assert_eq!(expected.token, found.token);
                assert!((expected.confidence - found.confidence).abs() < 1e-4);
            }
        },
    );
}
