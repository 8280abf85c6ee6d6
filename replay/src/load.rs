//! Loads: the number of sequences of each kind that a replay runs, and the other work of every step.

/// The kind of a sequence, which limits what a policy may choose for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A greedy or `match` request.
    Free,
    /// A `rejection` request: the engine drafts for it, and its threshold gives v.
    MustDraft,
    /// A request that allows no drafts.
    MayNotDraft,
}

/// A load of the replay.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Load {
    /// The load's name in reports.
    pub name: &'static str,
    /// Number of sequences.
    pub batch: usize,
    /// Number of steps.
    pub steps: usize,
    /// Number of first steps that do not count.
    pub not_counted: usize,
    /// Number of prompt rows that every step reads for other requests, from step `prompts_from` on.
    pub prompt_rows: usize,
    /// The first step that reads prompts.
    pub prompts_from: usize,
    /// Whether sequences end, and new requests arrive with prompts after a while.
    pub arrivals: bool,
    /// Number of sequences that must draft.
    pub must_draft: usize,
    /// Number of sequences that may not draft.
    pub may_not_draft: usize,
    /// Number of cached positions when a sequence begins.
    pub context: usize,
}

impl Load {
    /// Returns a quiet load of `batch` sequences.
    pub const fn quiet(batch: usize) -> Self {
        Self {
            name: "quiet",
            batch,
            steps: 2000,
            not_counted: 200,
            prompt_rows: 0,
            prompts_from: 0,
            arrivals: false,
            must_draft: 0,
            may_not_draft: 0,
            context: 512,
        }
    }

    /// Returns the loads that a policy must serve as well as the best mode does.
    pub fn all(batch: usize) -> Vec<Self> {
        let quiet = Self::quiet(batch);
        vec![
            Self { name: "a prompt in every step", prompt_rows: 64, ..quiet },
            Self { name: "prompts after ten quiet steps", prompt_rows: 256, prompts_from: 10, ..quiet },
            Self { name: "arrivals", arrivals: true, ..quiet },
            Self { name: "one request must draft", must_draft: 1, ..quiet },
            Self { name: "three in eight may not draft", may_not_draft: 3 * batch / 8, ..quiet },
        ]
    }

    /// Returns the kind of the sequence at place `seat` of the batch.
    pub fn kind(&self, seat: usize) -> Kind {
        if seat < self.must_draft {
            Kind::MustDraft
        } else if seat >= self.batch - self.may_not_draft {
            Kind::MayNotDraft
        } else {
            Kind::Free
        }
    }
}
