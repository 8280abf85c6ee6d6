//! Sampling and acceptance on a GPU and on the SIMT emulator: statistics and draws of plain and calibrated rows, and the
//! verdicts over them.

use bytemuck::Zeroable;
use flexdraft::acceptance::Rule;
use flexdraft::kernels::acceptance::{
    Accept, MAX_COMMITTED, SampledRows, Verdict, Verify, VerifySequence, accept_workspace_len,
};
use flexdraft::kernels::sampling::{Calibration, LogitRows, RowSampling, RowStats, Sample, workspace_len};
use flexdraft::layout::GroupSet;
use flexdraft::random::{Purpose, Stream};
use flexdraft::runtime::Runtime;
use flexdraft::sampling::SamplingParams;

use crate::bench::{Bench, halves, noise};
use crate::{Case, close, compare};

struct Sampling {
    vocab: usize,
}

impl Case for Sampling {
    /// Statistics of plain and calibrated rows, and the verdicts over them.
    type Output = (Vec<RowStats>, Vec<Verdict>);

    fn run<B: Runtime>(&self, bench: &Bench<B>) -> Self::Output {
        let Bench { kernels, stream } = bench;
        let runtime = kernels.runtime();
        let (vocab, rank, drafts) = (self.vocab, 24, 3);
        let stride = vocab.next_multiple_of(8);
        let params = |temperature, top_k, top_p| SamplingParams { temperature, top_k, top_p, min_p: 0.0 };
        let kinds = [params(0.0, 0, 1.0), params(1.0, 0, 1.0), params(0.8, 40, 1.0), params(1.0, 0, 0.9)];
        let rows = kinds.len() * (drafts + 1);
        let target_host = noise(1, rows * stride);
        let target = bench.memory(&target_host);
        // The draft's logits are the target's, before the calibrator changes them.
        let mut draft = bench.memory(&target_host);
        let way = |row: usize, purpose| {
            let numbers = Stream::new(9, purpose, row, 100);
            let params = &kinds[row / (drafts + 1)];
            RowSampling::new(params, (params.temperature > 0.0).then_some(numbers)).unwrap()
        };
        let ways = |purpose| (0..rows).map(|row| way(row, purpose)).collect::<Vec<_>>();
        let (target_ways, draft_ways) =
            (bench.memory(&ways(Purpose::TargetDraw)), bench.memory(&ways(Purpose::DraftDraw)));
        let workspace = || bench.memory(&vec![0f32; workspace_len(rows, vocab, true).unwrap()]);
        let (mut target_workspace, mut draft_workspace) = (workspace(), workspace());
        let mut target_stats = bench.memory(&vec![RowStats::zeroed(); rows]);
        let mut draft_stats = bench.memory(&vec![RowStats::zeroed(); rows]);
        let (hidden, weight, bias) = (
            bench.memory(&halves(2, rows * rank)),
            bench.memory(&halves(3, vocab * rank)),
            bench.memory(&noise(4, vocab)),
        );
        let sample = |logits, sampling, calibration, workspace, stats| {
            let sample = Sample {
                vocab,
                stride,
                logits,
                logit_index: None,
                sampling,
                starts: None,
                draft: None,
                calibration,
                workspace,
                stats,
                error: None,
            };
            kernels.sample(stream, sample).unwrap();
        };
        sample(
            LogitRows::Read(runtime.view(stream, &target)),
            runtime.view(stream, &target_ways),
            None,
            runtime.view_mut(stream, &mut target_workspace),
            runtime.view_mut(stream, &mut target_stats),
        );
        let calibration = Calibration {
            rank,
            hidden: runtime.view(stream, &hidden),
            weight: runtime.view(stream, &weight),
            bias: Some(runtime.view(stream, &bias)),
        };
        sample(
            LogitRows::Update(runtime.view_mut(stream, &mut draft)),
            runtime.view(stream, &draft_ways),
            Some(calibration),
            runtime.view_mut(stream, &mut draft_workspace),
            runtime.view_mut(stream, &mut draft_stats),
        );
        let mut stats = bench.host(&target_stats, rows);
        stats.extend(bench.host(&draft_stats, rows));

        let rules = [Rule::Match, Rule::Rejection, Rule::Block, Rule::Rejection];
        let requests: Vec<Verify> = (0..kinds.len())
            .map(|i| {
                Verify::new(&VerifySequence {
                    rule: rules[i],
                    seed: 9,
                    position: 100,
                    drafts,
                    first_target: i * (drafts + 1),
                    first_draft: Some(i * (drafts + 1)),
                    first_token: i * drafts,
                    groups: GroupSet::all(2),
                })
                .unwrap()
            })
            .collect();
        // The most likely tokens of the target, which both hosts draw regardless of rounding.
        let tokens: Vec<i32> = (0..kinds.len() * drafts)
            .map(|i| {
                let row = &target_host[(i / drafts * (drafts + 1) + i % drafts) * stride..][..vocab];
                (0..vocab).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap() as i32
            })
            .collect();
        let (requests, tokens) = (bench.memory(&requests), bench.memory(&tokens));
        let batch = kinds.len();
        let mut workspace = bench.memory(&vec![0f32; accept_workspace_len(batch, vocab).unwrap()]);
        let mut arrived = bench.memory(&vec![0u32; batch]);
        let mut verdicts = bench.memory(&vec![Verdict::zeroed(); batch]);
        let mut committed = bench.memory(&vec![0i32; batch * MAX_COMMITTED]);
        kernels
            .accept(
                stream,
                &Accept {
                    vocab,
                    stride,
                    sequences: runtime.view(stream, &requests),
                    target_partials: None,
                    any_block: true,
                    tokens: runtime.view(stream, &tokens),
                    target: SampledRows {
                        logits: runtime.view(stream, &target),
                        stats: runtime.view(stream, &target_stats),
                    },
                    draft: Some(SampledRows {
                        logits: runtime.view(stream, &draft),
                        stats: runtime.view(stream, &draft_stats),
                    }),
                    workspace: runtime.view_mut(stream, &mut workspace),
                    arrived: runtime.view_mut(stream, &mut arrived),
                    verdicts: runtime.view_mut(stream, &mut verdicts),
                    committed: runtime.view_mut(stream, &mut committed),
                    error: None,
                },
            )
            .unwrap();
        assert!(bench.host(&arrived, batch).iter().all(|&count| count == 0));
        (stats, bench.host(&verdicts, batch))
    }
}

#[test]
fn agrees_with_the_simt_host() {
    for vocab in [100, 5001] {
        compare(Sampling { vocab }, |(stats, verdicts), (other_stats, other_verdicts)| {
            for (row, (found, expected)) in other_stats.iter().zip(stats).enumerate() {
                let token = (found.token, found.kept);
                assert_eq!(token, (expected.token, expected.kept), "row {row} of {vocab} ids");
                let numbers = |s: &RowStats| [s.max, s.log_sum, s.probability, s.confidence, s.token_logit];
                close("statistics", &numbers(found), &numbers(expected), 1e-3);
            }
            for (found, expected) in other_verdicts.iter().zip(verdicts) {
                let decision = |v: &Verdict| (v.accepted, v.bonus, v.group, v.cached_length);
                assert_eq!(decision(found), decision(expected), "{vocab} ids");
                assert!((found.probability - expected.probability).abs() < 1e-3);
            }
        });
    }
}
