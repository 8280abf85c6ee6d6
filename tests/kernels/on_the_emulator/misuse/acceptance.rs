//! Tests that the kernels refuse operands that do not fit: acceptance, and the selection of the next draft by verdicts.

use flexdraft::acceptance::Rule;
use flexdraft::kernels::KernelError;
use flexdraft::kernels::acceptance::{
    Accept, ChosenRows, DraftDistributions, MAX_COMMITTED, SampledRows, Verdict, Verify, VerifySequence,
    accept_workspace_len,
};
use flexdraft::kernels::sampling::{RowStats, workspace_len};
use flexdraft::kernels::selection::{Draft, DraftGroups, FollowVerdicts, SelectDrafts};
use flexdraft::layout::GroupSet;

use super::memory::Memory;
use super::pass::tables;
use super::{Host, Launch, length, measure, measured, operands_are_checked, refused, taken, unsupported};

const SEQUENCE: VerifySequence = VerifySequence {
    rule: Rule::Block,
    seed: 1,
    position: 3,
    drafts: 2,
    first_target: 0,
    first_draft: Some(0),
    first_token: 0,
    groups: GroupSet::NONE,
};

/// Operands of acceptance: two sequences over a vocabulary of ten ids that share their rows.
struct Batch {
    vocab: usize,
    stride: usize,
    sequences: Memory,
    tokens: Memory,
    target: Memory,
    target_stats: Memory,
    target_partials: Memory,
    draft: Memory,
    draft_stats: Memory,
    /// The chosen ids of chained drafts and their logits, in place of `draft`; two per row.
    chained: Option<[Memory; 2]>,
    count: usize,
    workspace: Memory,
    arrived: Memory,
    verdicts: Memory,
    committed: Memory,
    error: Memory,
}

fn batch(sequences: usize) -> Batch {
    Batch {
        vocab: 10,
        stride: 16,
        sequences: Memory::of(&vec![Verify::new(&SEQUENCE).unwrap(); sequences]),
        tokens: Memory::of(&[1i32, 2]),
        target: Memory::zeros::<f32>(3 * 16),
        target_stats: Memory::zeros::<RowStats>(3),
        target_partials: Memory::zeros::<f32>(workspace_len(3, 10, false).unwrap()),
        draft: Memory::zeros::<f32>(2 * 16),
        draft_stats: Memory::zeros::<RowStats>(2),
        chained: None,
        count: 2,
        workspace: Memory::zeros::<f32>(accept_workspace_len(sequences, 10).unwrap()),
        arrived: Memory::zeros::<u32>(sequences),
        verdicts: Memory::zeros::<Verdict>(sequences),
        committed: Memory::zeros::<i32>(sequences * MAX_COMMITTED),
        error: Memory::zeros::<u32>(1),
    }
}

impl Launch for Batch {
    fn launch(&mut self, host: &Host) -> Result<(), KernelError> {
        let args = Accept {
            vocab: self.vocab,
            stride: self.stride,
            sequences: self.sequences.view(host),
            target_partials: Some(self.target_partials.view(host)),
            any_block: true,
            tokens: self.tokens.view(host),
            target: SampledRows {
                logits: self.target.view::<f32>(host),
                stats: self.target_stats.view(host),
            },
            draft: Some(match &self.chained {
                None => DraftDistributions {
                    logits: Some(self.draft.view(host)),
                    chosen: None,
                    stats: self.draft_stats.view(host),
                },
                Some([ids, chosen]) => DraftDistributions {
                    logits: None,
                    chosen: Some(ChosenRows {
                        count: self.count,
                        ids: ids.view(host),
                        logits: chosen.view(host),
                    }),
                    stats: self.draft_stats.view(host),
                },
            }),
            workspace: self.workspace.view_mut(host),
            arrived: self.arrived.view_mut(host),
            verdicts: self.verdicts.view_mut(host),
            committed: self.committed.view_mut(host),
            error: Some(self.error.view_mut(host)),
        };
        host.kernels.accept(&host.stream, &args)
    }
}

#[test]
fn accept() {
    const KERNEL: &str = "accept_f32";
    let sound = || batch(2);
    taken(sound);
    operands_are_checked(
        sound,
        KERNEL,
        &[
            measure("sequences", 8, |k: &mut Batch| &mut k.sequences),
            measure("tokens", 4, |k| &mut k.tokens),
            measured("target", 16, |k| &mut k.target),
            measure("target stats", 4, |k| &mut k.target_stats),
            measured("target partials", 4, |k| &mut k.target_partials),
            measured("draft", 16, |k| &mut k.draft),
            measure("draft stats", 4, |k| &mut k.draft_stats),
            measured("workspace", 8, |k| &mut k.workspace),
            measured("arrived", 4, |k| &mut k.arrived),
            measured("verdicts", 8, |k| &mut k.verdicts),
            measured("committed", 4, |k| &mut k.committed),
            measured("error word", 4, |k| &mut k.error),
        ],
    );
    // The statistics determine the number of rows of logits (a draft may have more rows), and the sequences the number
    // of results.
    refused(sound, |k| k.target_stats.shorten(1), length(KERNEL, "target", 2 * 16, 3 * 16));
    refused(sound, |k| k.draft.shorten(16), length(KERNEL, "draft", 2 * 16, 16));
    taken(|| {
        let mut batch = batch(2);
        batch.draft_stats.shorten(1);
        batch
    });
    refused(sound, |k| k.sequences.shorten(1), length(KERNEL, "arrived", 1, 2));
    for vocab in [0, (1 << 20) + 1] {
        let expected = unsupported(KERNEL, "vocabulary", vocab, "1 to 2^20");
        refused(sound, |k| k.vocab = vocab as usize, expected);
    }
    for stride in [8, 12] {
        let supported = "multiples of 8, at least the vocabulary";
        let expected = unsupported(KERNEL, "stride", stride, supported);
        refused(sound, |k| k.stride = stride as usize, expected);
    }
    let expected = unsupported(KERNEL, "batch", 65_536, "up to 65535");
    refused(|| batch(65_536), |_| (), expected);
    assert_eq!(accept_workspace_len(usize::MAX / 64, 10), None);
}

#[test]
fn accept_chained_drafts() {
    const KERNEL: &str = "accept_f32";
    let sound = || {
        let chained = Some([Memory::zeros::<i32>(2 * 2), Memory::zeros::<f32>(2 * 2)]);
        Batch { chained, ..batch(2) }
    };
    fn part(k: &mut Batch, index: usize) -> &mut Memory {
        &mut k.chained.as_mut().unwrap()[index]
    }
    taken(sound);
    operands_are_checked(
        sound,
        KERNEL,
        &[
            measured("draft ids", 4, |k: &mut Batch| part(k, 0)),
            measured("draft logits", 4, |k| part(k, 1)),
            measure("draft stats", 4, |k| &mut k.draft_stats),
        ],
    );
    refused(sound, |k| k.draft_stats.shorten(1), length(KERNEL, "draft ids", 2, 4));
    for count in [0, 33] {
        let expected = unsupported(KERNEL, "number of chosen ids", count, "1 to 32");
        refused(sound, |k| k.count = count as usize, expected);
    }
}

#[test]
fn sequences_that_cannot_be() {
    let refused = |sequence| Verify::new(&sequence).unwrap_err();
    let expected = unsupported("accept", "number of drafts", 64, "0 to 63");
    assert_eq!(refused(VerifySequence { drafts: 64, ..SEQUENCE }), expected);
    let far = 1 << 31;
    for (sequence, what) in [
        (VerifySequence { drafts: far, ..SEQUENCE }, "number of drafts"),
        (VerifySequence { position: far, ..SEQUENCE }, "position"),
        (VerifySequence { first_target: far, ..SEQUENCE }, "first target row"),
        (VerifySequence { first_draft: Some(far), ..SEQUENCE }, "first draft row"),
        (VerifySequence { first_token: far, ..SEQUENCE }, "first token"),
    ] {
        assert_eq!(refused(sequence), KernelError::Overflow { kernel: "accept", what });
    }
    let what = "first row of draft statistics";
    let error = Verify::new(&SEQUENCE).unwrap().with_draft_stats_at(far).unwrap_err();
    assert_eq!(error, KernelError::Overflow { kernel: "accept", what });
}

const DRAFT: DraftGroups =
    DraftGroups { sequence: 0, groups: GroupSet::NONE, first_slot: 4, slots: 3, first_draft: 0 };

#[test]
fn drafts_that_cannot_be() {
    let refused = |draft| Draft::new(&draft).unwrap_err();
    for slots in [0, 65] {
        let expected = unsupported("select_drafts", "number of slots", slots, "1 to 64");
        assert_eq!(refused(DraftGroups { slots: slots as usize, ..DRAFT }), expected);
    }
    let far = 1 << 31;
    for (draft, what) in [
        (DraftGroups { sequence: far, ..DRAFT }, "sequence"),
        (DraftGroups { first_slot: far, ..DRAFT }, "first slot"),
        (DraftGroups { slots: far, ..DRAFT }, "number of slots"),
        (DraftGroups { first_draft: far, ..DRAFT }, "first draft row"),
    ] {
        assert_eq!(refused(draft), KernelError::Overflow { kernel: "select_drafts", what });
    }
}

/// Operands of `select_drafts` for a draft with two rows.
struct Selection {
    drafts: Memory,
    verdicts: Memory,
    bonus: Memory,
    starts: Memory,
    sources: Memory,
    draft_rows: Memory,
    error: Memory,
}

impl Launch for Selection {
    fn launch(&mut self, host: &Host) -> Result<(), KernelError> {
        let args = SelectDrafts {
            drafts: self.drafts.view(host),
            verdicts: self.verdicts.view(host),
            bonus: self.bonus.view_mut(host),
            starts: self.starts.view_mut(host),
            sources: self.sources.view_mut(host),
            draft_rows: self.draft_rows.view_mut(host),
            error: Some(self.error.view_mut(host)),
        };
        host.kernels.select_drafts(&host.stream, &args)
    }
}

#[test]
fn select_drafts() {
    const KERNEL: &str = "select_drafts";
    let sound = || Selection {
        drafts: Memory::of(&[Draft::new(&DRAFT).unwrap()]),
        verdicts: Memory::zeros::<Verdict>(1),
        bonus: Memory::zeros::<i32>(1),
        starts: Memory::zeros::<i32>(1),
        sources: Memory::zeros::<i32>(2),
        draft_rows: Memory::zeros::<i32>(2),
        error: Memory::zeros::<u32>(1),
    };
    taken(sound);
    operands_are_checked(
        sound,
        KERNEL,
        &[
            measure("drafts", 8, |k: &mut Selection| &mut k.drafts),
            measure("verdicts", 8, |k| &mut k.verdicts),
            measured("bonus", 4, |k| &mut k.bonus),
            measured("starts", 4, |k| &mut k.starts),
            measure("sources", 4, |k| &mut k.sources),
            measured("draft rows", 4, |k| &mut k.draft_rows),
            measured("error word", 4, |k| &mut k.error),
        ],
    );
    refused(sound, |k| k.drafts.shorten(1), length(KERNEL, "bonus", 0, 1));
    refused(sound, |k| k.sources.shorten(1), length(KERNEL, "draft rows", 1, 2));
}

/// Operands of `follow_verdicts` for the sequences of the pass in `pass.rs`.
struct Follow {
    sequences: Memory,
    verdicts: Memory,
    error: Memory,
}

impl Launch for Follow {
    fn launch(&mut self, host: &Host) -> Result<(), KernelError> {
        let args = FollowVerdicts {
            pass: &mut tables(host),
            sequences: self.sequences.view(host),
            verdicts: self.verdicts.view(host),
            error: Some(self.error.view_mut(host)),
        };
        host.kernels.follow_verdicts(&host.stream, args)
    }
}

#[test]
fn follow_verdicts() {
    let sound = || Follow {
        sequences: Memory::zeros::<i32>(2),
        verdicts: Memory::zeros::<Verdict>(1),
        error: Memory::zeros::<u32>(1),
    };
    taken(sound);
    operands_are_checked(
        sound,
        "follow_verdicts",
        &[
            measured("sequences", 4, |k: &mut Follow| &mut k.sequences),
            measure("verdicts", 8, |k| &mut k.verdicts),
            measured("error word", 4, |k| &mut k.error),
        ],
    );
}
