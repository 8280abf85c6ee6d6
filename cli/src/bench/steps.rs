//! The steps that the benchmark times: the passes and sizes of each mode's step.

use flexdraft::decode::{EngineOptions, StepShape};
use flexdraft::model::DrafterKind;

use super::args::{Groups, StepMode};

/// One pass of a timed step, the same for every sequence.
#[derive(Clone, Debug, PartialEq)]
pub struct PassShape {
    pub candidates: usize,
    pub groups: Vec<usize>,
    pub slots: usize,
}

/// The work of one step in a mode: its passes, and the numbers of verified and drafted tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    pub mode: StepMode,
    pub passes: Vec<PassShape>,
    /// Number of candidates, counted from the last, whose logits are computed.
    pub logits: usize,
    /// Number v of draft tokens that the step verifies.
    pub verified: usize,
    /// Number of draft tokens that are sampled for the next step.
    pub drafts: usize,
}

impl Step {
    /// Returns the first pass over a prompt, with at most the number of tokens that an engine reads at a time.
    pub fn prefill(context: usize) -> Self {
        let candidates = context.clamp(1, EngineOptions::default().prefill_rows);
        Self::without_drafts(StepMode::Prefill, candidates)
    }

    /// Returns a step that decodes one token per sequence.
    pub fn autoregressive() -> Self {
        Self::without_drafts(StepMode::Ar, 1)
    }

    fn without_drafts(mode: StepMode, candidates: usize) -> Self {
        let pass = PassShape { candidates, groups: Vec::new(), slots: 0 };
        Self { mode, passes: vec![pass], logits: 1, verified: 0, drafts: 0 }
    }

    /// Returns a step that verifies `verified` draft tokens, then drafts a block of `block_size` slots.
    pub fn sequential(verify_len: usize, block_size: usize) -> Self {
        let verification = PassShape { candidates: verify_len + 1, groups: Vec::new(), slots: block_size };
        let drafting = PassShape { candidates: 0, groups: vec![verify_len], slots: block_size };
        Self {
            mode: StepMode::Sequential,
            passes: vec![verification, drafting],
            logits: verify_len + 1,
            verified: verify_len,
            drafts: block_size - 1,
        }
    }

    /// Returns a step that verifies draft tokens and, in the same pass, drafts `groups` blocks for the longest accepted
    /// lengths.
    pub fn parallel(verify_len: usize, block_size: usize, groups: usize) -> Self {
        let groups = ((verify_len + 1).saturating_sub(groups.max(1))..=verify_len).collect();
        let joint = PassShape { candidates: verify_len + 1, groups, slots: block_size };
        Self {
            mode: StepMode::Parallel,
            passes: vec![joint],
            logits: verify_len + 1,
            verified: verify_len,
            drafts: block_size - 1,
        }
    }

    /// Returns the number of mask groups of a sequence in the verifying pass.
    pub fn groups(&self) -> usize {
        match self.mode {
            StepMode::Parallel => self.passes.iter().map(|pass| pass.groups.len()).sum(),
            _ => 0,
        }
    }

    /// Returns the number of tokens that the step commits or reads per sequence: `tau` on average, limited by what the
    /// step can commit.
    pub fn tokens(&self, tau: f64) -> f64 {
        match self.mode {
            StepMode::Prefill => self.passes.iter().map(|pass| pass.candidates).sum::<usize>() as f64,
            StepMode::Ar => 1.0,
            StepMode::Sequential | StepMode::Parallel => tau.min(self.verified as f64 + 1.0),
        }
    }

    /// Returns what a cost model knows of the step for `batch` sequences of `context` cached positions.
    pub fn shape(&self, batch: usize, context: usize) -> StepShape {
        let (candidates, groups) = (batch * self.candidates(), self.groups());
        let slots = self.passes.iter().map(|pass| pass.slots).max().unwrap_or(0);
        let cached = batch * context;
        let drafts_apart = self.mode == StepMode::Sequential;
        StepShape {
            sequences: batch,
            candidates,
            reads: if self.mode == StepMode::Prefill { candidates } else { 0 },
            mask_rows: batch * groups * slots,
            cached,
            group_cached: cached * groups,
            draft_rows: if drafts_apart { batch * slots } else { 0 },
            draft_cached: if drafts_apart { cached } else { 0 },
        }
    }

    /// Returns the number of candidates in the step's largest pass.
    pub fn candidates(&self) -> usize {
        self.passes.iter().map(|pass| pass.candidates).max().unwrap_or(0)
    }
}

/// The steps that the arguments request.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Requested modes; empty for all modes.
    pub modes: Vec<StepMode>,
    /// Requested verify lengths, each below the block size and without duplicates.
    verify_lens: Vec<usize>,
    groups: Vec<Groups>,
    block_size: usize,
    /// The kind of the model's drafter, if it has one.
    drafter: Option<DrafterKind>,
}

impl Asked {
    /// Removes verify lengths that the block size does not allow, and duplicates.
    pub fn new(
        modes: &[StepMode],
        verify_lens: &[usize],
        groups: &[Groups],
        block_size: usize,
        drafter: Option<DrafterKind>,
    ) -> Self {
        let mut unique = Vec::new();
        for verify_len in verify_lens.iter().map(|&v| v.min(block_size - 1)) {
            if !unique.contains(&verify_len) {
                unique.push(verify_len);
            }
        }
        Self { modes: modes.to_vec(), verify_lens: unique, groups: groups.to_vec(), block_size, drafter }
    }

    /// Returns the verify lengths of the requested steps.
    pub fn verify_lens(&self) -> &[usize] {
        &self.verify_lens
    }

    /// Returns the steps to time after `context` cached positions.
    pub fn steps(&self, context: usize) -> Vec<Step> {
        let mut steps = vec![Step::prefill(context), Step::autoregressive()];
        for &verify_len in self.verify_lens.iter().filter(|_| self.drafter.is_some()) {
            steps.push(Step::sequential(verify_len, self.block_size));
            let parallel = self.drafter.is_some_and(DrafterKind::drafts_while_verifying);
            for groups in self.groups.iter().filter(|_| parallel) {
                let groups = match *groups {
                    Groups::All => verify_len + 1,
                    Groups::Longest(groups) => groups,
                };
                let step = Step::parallel(verify_len, self.block_size, groups);
                if !steps.contains(&step) {
                    steps.push(step);
                }
            }
        }
        steps.retain(|step| self.modes.is_empty() || self.modes.contains(&step.mode));
        steps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLEXDRAFT: Option<DrafterKind> = Some(DrafterKind::FlexDraft);

    #[test]
    fn steps_of_the_modes() {
        let ar = Step::autoregressive();
        assert_eq!((ar.passes[0].candidates, ar.drafts, ar.groups()), (1, 0, 0));
        let sequential = Step::sequential(2, 4);
        assert_eq!((sequential.passes.len(), sequential.passes[1].groups.clone()), (2, vec![2]));
        assert_eq!((sequential.groups(), sequential.candidates()), (0, 3));
        let parallel = Step::parallel(2, 4, 2);
        assert_eq!((parallel.passes[0].candidates, parallel.passes[0].groups.clone()), (3, vec![1, 2]));
        assert_eq!((parallel.verified, parallel.drafts, parallel.groups()), (2, 3, 2));
        // A step commits at most its verified tokens and the bonus token.
        assert_eq!((parallel.tokens(2.5), parallel.tokens(7.1), ar.tokens(7.1)), (2.5, 3.0, 1.0));
        assert_eq!(Step::prefill(20).tokens(7.1), 20.0);
        let shape = parallel.shape(3, 10);
        assert_eq!((shape.candidates, shape.mask_rows, shape.group_cached, shape.draft_rows), (9, 24, 60, 0));
        let shape = sequential.shape(3, 10);
        assert_eq!((shape.candidates, shape.mask_rows, shape.draft_rows, shape.draft_cached), (9, 0, 12, 30));
        let shape = Step::prefill(20).shape(2, 0);
        assert_eq!((shape.sequences, shape.candidates, shape.reads), (2, 40, 40));
    }

    fn names(asked: &Asked) -> Vec<(&'static str, usize, usize)> {
        asked.steps(20).iter().map(|step| (step.mode.name(), step.verified, step.groups())).collect()
    }

    #[test]
    fn several_verify_lengths_and_numbers_of_groups() {
        let groups = [Groups::All, Groups::Longest(4)];
        let asked = Asked::new(&[], &[3, 7, 15], &groups, 16, FLEXDRAFT);
        let expected = [
            ("prefill", 0, 0),
            ("ar", 0, 0),
            ("sequential", 3, 0),
            // A step that verifies three tokens has four groups in all, so `all` and 4 request the same step.
            ("parallel", 3, 4),
            ("sequential", 7, 0),
            ("parallel", 7, 8),
            ("parallel", 7, 4),
            ("sequential", 15, 0),
            ("parallel", 15, 16),
            ("parallel", 15, 4),
        ];
        assert_eq!(names(&asked), expected);
        assert_eq!(asked.steps(20)[9].passes[0].groups, [12, 13, 14, 15]);
    }

    #[test]
    fn what_is_more_than_there_is() {
        let asked = Asked::new(&[], &[9, 3, 4], &[Groups::Longest(9)], 4, FLEXDRAFT);
        assert_eq!(asked.verify_lens(), [3]);
        let expected = [("prefill", 0, 0), ("ar", 0, 0), ("sequential", 3, 0), ("parallel", 3, 4)];
        assert_eq!(names(&asked), expected);
        // A block of one slot drafts no token, but is valid.
        let asked = Asked::new(&[StepMode::Parallel], &[4], &[Groups::All], 1, FLEXDRAFT);
        assert_eq!(names(&asked), [("parallel", 0, 1)]);
    }

    #[test]
    fn orthrus_has_no_parallel_steps() {
        let orthrus = Some(DrafterKind::Orthrus);
        let asked = Asked::new(&[], &[3], &[Groups::All], 8, orthrus);
        assert_eq!(names(&asked), [("prefill", 0, 0), ("ar", 0, 0), ("sequential", 3, 0)]);
    }

    #[test]
    fn only_the_modes_asked_for_and_those_that_can_be() {
        let asked = Asked::new(&[StepMode::Ar, StepMode::Parallel], &[1], &[Groups::All], 4, FLEXDRAFT);
        assert_eq!(names(&asked), [("ar", 0, 0), ("parallel", 1, 2)]);
        let asked = Asked::new(&[], &[4], &[Groups::All], 1, None);
        assert_eq!(names(&asked), [("prefill", 0, 0), ("ar", 0, 0)]);
    }
}
