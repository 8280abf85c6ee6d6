//! Tests that the kernels of Chained Calibration refuse operands that do not fit.

use flexdraft::kernels::KernelError;
use flexdraft::kernels::chain::{ChainChoose, ChainScore, ChainWalk};
use flexdraft::kernels::sampling::{RowSampling, RowStats, workspace_len};
use flexdraft::kernels::selection::{Draft, DraftGroups};
use flexdraft::layout::GroupSet;
use flexdraft::sampling::SamplingParams;
use half::bf16;

use super::memory::Memory;
use super::{Host, Launch, length, measure, measured, operands_are_checked, refused, taken, unsupported};

/// Operands of the choice of four ids in each of two rows over a vocabulary of ten ids.
struct Choose {
    vocab: usize,
    stride: usize,
    count: usize,
    logits: Memory,
    index: Option<Memory>,
    partials: Memory,
    ids: Memory,
    chosen: Memory,
    error: Memory,
}

impl Launch for Choose {
    fn launch(&mut self, host: &Host) -> Result<(), KernelError> {
        let args = ChainChoose {
            vocab: self.vocab,
            stride: self.stride,
            logits: self.logits.view::<f32>(host),
            logit_index: self.index.as_ref().map(|index| index.view(host)),
            partials: self.partials.view(host),
            calibrated: true,
            count: self.count,
            ids: self.ids.view_mut(host),
            chosen: self.chosen.view_mut(host),
            error: Some(self.error.view_mut(host)),
        };
        host.kernels.chain_choose(&host.stream, &args)
    }
}

fn choose() -> Choose {
    Choose {
        vocab: 10,
        stride: 16,
        count: 4,
        logits: Memory::zeros::<f32>(2 * 16),
        index: Some(Memory::zeros::<i32>(2)),
        partials: Memory::zeros::<f32>(workspace_len(2, 10, true).unwrap()),
        ids: Memory::zeros::<i32>(2 * 4),
        chosen: Memory::zeros::<f32>(2 * 4),
        error: Memory::zeros::<u32>(1),
    }
}

#[test]
fn chain_choose() {
    const KERNEL: &str = "chain_choose_f32";
    taken(choose);
    operands_are_checked(
        choose,
        KERNEL,
        &[
            measure("logits", 16, |k: &mut Choose| &mut k.logits),
            measured("logit_index", 4, |k| k.index.as_mut().unwrap()),
            measured("partials", 4, |k| &mut k.partials),
            measure("ids", 4, |k| &mut k.ids),
            measured("chosen", 4, |k| &mut k.chosen),
            measured("error word", 4, |k| &mut k.error),
        ],
    );
    // The ids determine the number of rows.
    refused(choose, |k| k.ids.shorten(1), length(KERNEL, "ids", 4, 7));
    refused(choose, |k| k.logits.shorten(1), length(KERNEL, "logits", 16, 31));
    let without_index = || Choose { index: None, ..choose() };
    taken(without_index);
    refused(without_index, |k| k.logits.shorten(16), length(KERNEL, "logits", 2 * 16, 16));
    for count in [0, 33] {
        let expected = unsupported(KERNEL, "number of chosen ids", count, "1 to 32");
        refused(choose, |k| k.count = count as usize, expected);
    }
    let expected = unsupported(KERNEL, "number of chosen ids", 11, "up to the vocabulary");
    refused(choose, |k| k.count = 11, expected);
    for vocab in [0, (1 << 20) + 1] {
        let expected = unsupported(KERNEL, "vocabulary", vocab, "1 to 2^20");
        refused(choose, |k| k.vocab = vocab as usize, expected);
    }
    for stride in [8, 12] {
        let supported = "multiples of 8, at least the vocabulary";
        refused(choose, |k| k.stride = stride as usize, unsupported(KERNEL, "stride", stride, supported));
    }
}

/// Operands of the scores of one draft with two rows of three ids, from factors of five elements.
struct Score {
    rank: usize,
    count: usize,
    drafts: usize,
    strides: [usize; 2],
    before: Memory,
    after: Memory,
    owners: Memory,
    scores: Memory,
    error: Memory,
}

impl Launch for Score {
    fn launch(&mut self, host: &Host) -> Result<(), KernelError> {
        let [before_stride, after_stride] = self.strides;
        let args = ChainScore {
            rank: self.rank,
            count: self.count,
            drafts: self.drafts,
            before: self.before.view(host),
            before_stride,
            after: self.after.view::<bf16>(host),
            after_stride,
            owners: self.owners.view(host),
            scores: self.scores.view_mut(host),
            error: Some(self.error.view_mut(host)),
        };
        host.kernels.chain_score(&host.stream, &args)
    }
}

#[test]
fn chain_score() {
    const KERNEL: &str = "chain_score_bf16";
    let sound = || Score {
        rank: 5,
        count: 3,
        drafts: 1,
        strides: [8, 16],
        before: Memory::zeros::<f32>((1 + 2 * 3) * 8),
        after: Memory::zeros::<bf16>(2 * 3 * 16),
        owners: Memory::zeros::<i32>(2),
        scores: Memory::zeros::<f32>(2 * 3 * 3),
        error: Memory::zeros::<u32>(1),
    };
    taken(sound);
    operands_are_checked(
        sound,
        KERNEL,
        &[
            measured("before", 16, |k: &mut Score| &mut k.before),
            measured("after", 16, |k| &mut k.after),
            measure("owners", 4, |k| &mut k.owners),
            measured("scores", 4, |k| &mut k.scores),
            measured("error word", 4, |k| &mut k.error),
        ],
    );
    // The owners determine the number of rows.
    refused(sound, |k| k.owners.shorten(1), length(KERNEL, "before", (1 + 3) * 8, 7 * 8));
    for count in [0, 33] {
        let expected = unsupported(KERNEL, "number of chosen ids", count, "1 to 32");
        refused(sound, |k| k.count = count as usize, expected);
    }
    refused(sound, |k| k.rank = 0, unsupported(KERNEL, "rank", 0, "1 and above, below 2^31"));
    for (place, stride) in [(0, 12), (1, 12), (1, 0)] {
        let supported = "multiples of 8, at least the rank";
        let expected = unsupported(KERNEL, "stride of factors", stride, supported);
        refused(sound, |k| k.strides[place] = stride as usize, expected);
    }
    let expected = KernelError::Overflow { kernel: KERNEL, what: "before" };
    refused(sound, |k| k.drafts = usize::MAX, expected);
}

/// Operands of the walk of one draft with two rows of three ids.
struct Walk {
    count: usize,
    drafts: Memory,
    index: Memory,
    sampling: Memory,
    starts: Memory,
    ids: Memory,
    scores: Memory,
    chosen: Memory,
    stats: Memory,
    error: Memory,
}

impl Launch for Walk {
    fn launch(&mut self, host: &Host) -> Result<(), KernelError> {
        let args = ChainWalk {
            drafts: self.drafts.view(host),
            logit_index: Some(self.index.view(host)),
            sampling: self.sampling.view(host),
            starts: Some(self.starts.view(host)),
            count: self.count,
            ids: self.ids.view(host),
            scores: self.scores.view(host),
            chosen: self.chosen.view_mut(host),
            stats: self.stats.view_mut(host),
            error: Some(self.error.view_mut(host)),
        };
        host.kernels.chain_walk(&host.stream, &args)
    }
}

#[test]
fn chain_walk() {
    const KERNEL: &str = "chain_walk";
    const DRAFT: DraftGroups =
        DraftGroups { sequence: 0, groups: GroupSet::NONE, first_slot: 0, slots: 3, first_draft: 0 };
    let sound = || Walk {
        count: 3,
        drafts: Memory::of(&[Draft::new(&DRAFT).unwrap()]),
        index: Memory::zeros::<i32>(2),
        sampling: Memory::of(&[RowSampling::new(&SamplingParams::GREEDY, None).unwrap(); 2]),
        starts: Memory::zeros::<i32>(1),
        ids: Memory::zeros::<i32>(2 * 3),
        scores: Memory::zeros::<f32>(2 * 3 * 3),
        chosen: Memory::zeros::<f32>(2 * 3),
        stats: Memory::zeros::<RowStats>(2),
        error: Memory::zeros::<u32>(1),
    };
    taken(sound);
    operands_are_checked(
        sound,
        KERNEL,
        &[
            measure("drafts", 8, |k: &mut Walk| &mut k.drafts),
            measured("logit_index", 4, |k| &mut k.index),
            measure("sampling", 8, |k| &mut k.sampling),
            measure("starts", 4, |k| &mut k.starts),
            measured("ids", 4, |k| &mut k.ids),
            measured("scores", 4, |k| &mut k.scores),
            measured("chosen", 4, |k| &mut k.chosen),
            measured("stats", 4, |k| &mut k.stats),
            measured("error word", 4, |k| &mut k.error),
        ],
    );
    // The sampling parameters determine the number of rows.
    refused(sound, |k| k.sampling.shorten(1), length(KERNEL, "logit_index", 1, 2));
    for count in [0, 33] {
        let expected = unsupported(KERNEL, "number of chosen ids", count, "1 to 32");
        refused(sound, |k| k.count = count as usize, expected);
    }
}
