//! Acceptance of draft tokens.

use bytemuck::Zeroable;
use flexdraft::acceptance::Rule;
use flexdraft::kernels::acceptance::{self, ChosenRows, Verdict, Verify};
use flexdraft::kernels::sampling::RowStats;
use flexdraft::layout::GroupSet;
use flexdraft_ffi::*;
use half::{bf16, f16};

use super::sampling::{sample_both, sampling_row};
use super::{STREAM, bits, simt};
use crate::support::{ABSENT, Noise, Opened, Stored, attempt, read, versioned, write};

/// The chosen ids of a draft with a chain: their number per row, the ids and their logits.
pub type Chosen<'a> = (usize, &'a [i32], &'a [f32]);

/// One sequence whose draft is verified.
pub struct Verified<'a, L> {
    pub rule: u32,
    pub vocab: usize,
    /// The target's logits, statistics and partial results after sampling.
    pub target: (&'a [L], &'a [RowStats], &'a [f32]),
    /// Logits of the draft. Without logits and without chosen ids, the draft is certain.
    pub draft: Option<&'a [L]>,
    pub chosen: Option<Chosen<'a>>,
    pub draft_stats: &'a [RowStats],
}

impl<L: Stored> Verified<'_, L> {
    fn drafts(&self) -> usize {
        self.draft_stats.len()
    }

    /// Returns the sequence, made by both interfaces.
    fn verify_both(&self) -> Verify {
        let asked = versioned!(FlexdraftVerifySequence {
            seed: 11,
            position: 120,
            drafts: self.drafts() as u64,
            first_target: 0,
            first_draft: 0,
            first_draft_stats: 0,
            first_token: 0,
            groups: 0b11,
            rule: self.rule,
            draft: match (self.draft, self.chosen) {
                (_, Some(_)) => FLEXDRAFT_DRAFT_CHAINED,
                (Some(_), None) => FLEXDRAFT_DRAFT_LOGITS,
                (None, None) => FLEXDRAFT_DRAFT_CERTAIN,
            },
        });
        let mut verify = FlexdraftVerify { words: [0; 6] };
        // SAFETY: both pointers lead to variables.
        attempt(|error| unsafe { flexdraft_verify(&raw const asked, &raw mut verify, error) }).unwrap();
        let expected = Verify::new(&acceptance::VerifySequence {
            rule: [Rule::Match, Rule::Rejection, Rule::Block][self.rule as usize],
            seed: 11,
            position: 120,
            drafts: self.drafts(),
            first_target: 0,
            first_draft: self.draft.map(|_| 0),
            first_token: 0,
            groups: GroupSet::from_bits(0b11),
        })
        .unwrap();
        let expected = match self.chosen {
            Some(_) => expected.with_chained_draft_at(0).unwrap(),
            None => expected,
        };
        assert_eq!(bits(&verify.words), bits(&[expected]));
        expected
    }

    /// Verifies the draft through both interfaces.
    pub fn accept_both(&self) {
        let (opened, kernels) = (Opened::new(), simt());
        let stream = kernels.runtime().stream();
        let (sequences, vocab) = ([self.verify_both()], self.vocab);
        let (target, target_stats, partials) = self.target;
        let (stride, any_block) = (target.len() / target_stats.len(), self.rule == FLEXDRAFT_BLOCK);
        let tokens: Vec<i32> = self.draft_stats.iter().map(|stats| stats.token).collect();
        let mut elements = 0;
        // SAFETY: the pointer leads to a variable.
        attempt(|error| unsafe { flexdraft_accept_workspace_len(1, vocab as u64, &raw mut elements, error) })
            .unwrap();
        assert_eq!(Some(elements as usize), acceptance::accept_workspace_len(1, vocab));
        let mut workspace = vec![0u64; elements as usize];
        let workspace: &mut [f32] = bytemuck::cast_slice_mut(&mut workspace);
        let (mut verdicts, mut found_verdicts) = ([Verdict::zeroed()], [Verdict::zeroed()]);
        let (mut committed, mut found_committed) = ([5i32; 64], [6i32; 64]);
        let (mut word, mut found_word) = ([0u32], [0u32]);
        let has_distributions = self.draft.is_some() || self.chosen.is_some();
        kernels
            .accept(
                &stream,
                &acceptance::Accept {
                    vocab,
                    stride,
                    sequences: stream.view(&sequences),
                    any_block,
                    tokens: stream.view(&tokens),
                    target: acceptance::SampledRows {
                        logits: stream.view(target),
                        stats: stream.view(target_stats),
                    },
                    target_partials: Some(stream.view(partials)),
                    draft: has_distributions.then(|| acceptance::DraftDistributions {
                        logits: self.draft.map(|logits| stream.view(logits)),
                        chosen: self.chosen.map(|(count, ids, logits)| ChosenRows {
                            count,
                            ids: stream.view(ids),
                            logits: stream.view(logits),
                        }),
                        stats: stream.view(self.draft_stats),
                    }),
                    workspace: stream.view_mut(workspace),
                    arrived: stream.view_mut(&mut [0]),
                    verdicts: stream.view_mut(&mut verdicts),
                    committed: stream.view_mut(&mut committed),
                    error: Some(stream.view_mut(&mut word)),
                },
            )
            .unwrap();
        launch!(
            opened,
            flexdraft_accept,
            versioned!(FlexdraftAccept {
                vocab: vocab as u64,
                stride: stride as u64,
                sequences: read(&sequences),
                tokens: read(&tokens),
                target: read(target),
                target_stats: read(target_stats),
                target_partials: read(partials),
                draft: self.draft.map_or(ABSENT, read),
                draft_stats: if has_distributions { read(self.draft_stats) } else { ABSENT },
                chosen_count: self.chosen.map_or(0, |(count, ..)| count as u64),
                chosen_ids: self.chosen.map_or(ABSENT, |(_, ids, _)| read(ids)),
                chosen_logits: self.chosen.map_or(ABSENT, |(.., logits)| read(logits)),
                workspace: write(workspace),
                arrived: write(&mut [0u32]),
                verdicts: write(&mut found_verdicts),
                committed: write(&mut found_committed),
                error_word: write(&mut found_word),
                any_block: u32::from(any_block),
                ..
            })
        );
        assert_eq!((bits(&found_verdicts), found_committed), (bits(&verdicts), committed));
        assert_eq!((word, found_word), ([0], [0]));
        assert!((0..=self.drafts() as i32).contains(&verdicts[0].accepted));
    }
}

#[test]
fn sampling_and_acceptance() {
    sampling_and_acceptance_of::<f32>();
    sampling_and_acceptance_of::<bf16>();
    sampling_and_acceptance_of::<f16>();
}

fn sampling_and_acceptance_of<L: Stored>() {
    let mut noise = Noise(3);
    for rule in [FLEXDRAFT_MATCH, FLEXDRAFT_REJECTION, FLEXDRAFT_BLOCK] {
        let (drafts, vocab, stride, rank) = (1 + noise.below(3), 40 + noise.below(30), 72, 8);
        let certain = rule == FLEXDRAFT_MATCH;
        let draft_purpose = if certain { FLEXDRAFT_TARGET_DRAW } else { FLEXDRAFT_DRAFT_DRAW };
        let target_rows: Vec<_> =
            (0..=drafts).map(|_| sampling_row(FLEXDRAFT_TARGET_DRAW, 0, 0.8).0).collect();
        let draft_rows: Vec<_> =
            (0..drafts).map(|slot| sampling_row(draft_purpose, slot as u64 + 1, 0.8).0).collect();
        let (hidden, weight, bias) =
            (noise.rounded::<L::Calibrator>(drafts * rank), noise.rounded(vocab * rank), noise.floats(vocab));
        let target = noise.rounded::<L>((drafts + 1) * stride);
        let draft = &target[..drafts * stride];
        let (target, target_stats, partials) =
            sample_both::<_, L::Calibrator>(&target, vocab, &target_rows, None);
        let (draft, draft_stats, _) = sample_both(draft, vocab, &draft_rows, Some((&hidden, &weight, &bias)));
        Verified {
            rule,
            vocab,
            target: (&target, &target_stats, &partials),
            draft: (!certain).then_some(&draft),
            chosen: None,
            draft_stats: &draft_stats,
        }
        .accept_both();
    }
}
