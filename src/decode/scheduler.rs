//! The scheduler: which sequences a step runs, what it does for each, and which cache pages they have.

use std::collections::VecDeque;
use std::time::Instant;

use super::error::DecodeError;
use super::options::EngineOptions;
use super::pages::PageAllocator;
use super::policy::{BatchView, Choice, Policy, SequenceView};
use super::proposal_confidence::ProposalConfidence;
use super::record::{Committed, Finish};
use super::request_id::RequestId;
use super::sequence::{PendingDraft, Sequence, Work};
use super::stats::{DraftCounts, EngineStats, PrefixCounts};
use super::step::{Outcome, SequencePlan};
use crate::acceptance::Rule;
use crate::layout::GroupSet;
use crate::model::DrafterKind;

/// The counts of an engine's statistics.
pub(super) struct SchedulerCounts {
    preempted: u64,
    prefixes: PrefixCounts,
    drafts: DraftCounts,
}

/// The sequences of an engine, and the cache pages that they share.
pub(super) struct Scheduler<B> {
    pages: PageAllocator,
    options: EngineOptions,
    /// The target's context length.
    context_len: usize,
    /// The kind of the model's drafter, if it has one.
    drafter: Option<DrafterKind>,
    /// The sequences that steps run, in ascending order of [rank](Sequence::rank).
    active: Vec<Sequence<B>>,
    /// The sequences that wait for a place in the batch or for pages, in ascending order of rank.
    waiting: VecDeque<Sequence<B>>,
    /// Reports of requests that ended outside a step; the next step returns them.
    finished: Vec<Committed>,
    preempted: u64,
    prefixes: PrefixCounts,
    drafts: DraftCounts,
    proposals: ProposalConfidence,
}

impl<B> Scheduler<B> {
    /// Makes a scheduler that has no sequences yet.
    pub(super) fn new(
        pages: PageAllocator,
        options: EngineOptions,
        context_len: usize,
        drafter: Option<DrafterKind>,
    ) -> Self {
        let (active, waiting, finished) = (Vec::new(), VecDeque::new(), Vec::new());
        let (preempted, prefixes, drafts) = (0, PrefixCounts::default(), DraftCounts::default());
        let proposals = ProposalConfidence::default();
        Self {
            pages,
            options,
            context_len,
            drafter,
            active,
            waiting,
            finished,
            preempted,
            prefixes,
            drafts,
            proposals,
        }
    }

    /// Returns the engine's options.
    pub(super) fn options(&self) -> &EngineOptions {
        &self.options
    }

    /// Checks that the cache has room for `tokens` tokens of one sequence, if this sequence has all pages.
    pub(super) fn check_room(&self, tokens: usize) -> Result<(), DecodeError> {
        let needed = self.pages.pages_for(tokens);
        if needed > self.pages.pages() { Err(self.exhausted(needed)) } else { Ok(()) }
    }

    /// Adds a sequence. A sequence that may not generate any token ends at once.
    pub(super) fn add(&mut self, sequence: Sequence<B>) {
        if sequence.max_len == sequence.tokens.len() {
            self.report_end(sequence.id, Finish::Length);
        } else {
            self.wait(sequence);
        }
    }

    /// Stores the report that a sequence has ended, which the next step returns.
    fn report_end(&mut self, id: RequestId, finish: Finish) {
        let (tokens, logprobs) = (Vec::new(), Vec::new());
        self.finished.push(Committed { id, tokens, logprobs, finish: Some(finish), record: None });
    }

    /// Puts a sequence into the list of waiting sequences, at the place of its rank.
    fn wait(&mut self, sequence: Sequence<B>) {
        let at = self.waiting.partition_point(|other| other.rank() < sequence.rank());
        self.waiting.insert(at, sequence);
    }

    /// Drops a sequence. Returns whether the scheduler still had it.
    pub(super) fn cancel(&mut self, id: RequestId) -> bool {
        let before = self.finished.len();
        self.finished.retain(|committed| committed.id != id);
        self.remove(id) || self.finished.len() < before
    }

    /// Ends a sequence, which the next step reports. Returns whether the sequence was still running or waiting.
    pub(super) fn end(&mut self, id: RequestId, finish: Finish) -> bool {
        let removed = self.remove(id);
        if removed {
            self.report_end(id, finish);
        }
        removed
    }

    /// Removes a sequence that is running or waiting, and frees its pages. Returns whether there was one.
    fn remove(&mut self, id: RequestId) -> bool {
        if let Some(index) = self.active.iter().position(|sequence| sequence.id == id) {
            let mut sequence = self.active.remove(index);
            self.pages.shrink(&mut sequence.pages, 0);
            return true;
        }
        let before = self.waiting.len();
        self.waiting.retain(|sequence| sequence.id != id);
        self.waiting.len() < before
    }

    /// Ends all sequences whose deadline is at or before `now`.
    pub(super) fn expire(&mut self, now: Instant) {
        let sequences = self.active.iter().chain(&self.waiting);
        let late =
            sequences.filter(|sequence| sequence.request.deadline.is_some_and(|deadline| deadline <= now));
        for id in late.map(|sequence| sequence.id).collect::<Vec<_>>() {
            self.end(id, Finish::Deadline);
        }
    }

    /// Returns the sequence of a request, if it is running or waiting.
    pub(super) fn sequence(&self, id: RequestId) -> Option<&Sequence<B>> {
        self.active.iter().chain(&self.waiting).find(|sequence| sequence.id == id)
    }

    /// Replaces the total length at which a sequence ends. A sequence that has that length already ends at once.
    pub(super) fn set_max_len(&mut self, id: RequestId, max_len: usize) {
        let Some(sequence) = self.sequences_mut().find(|sequence| sequence.id == id) else { return };
        sequence.max_len = max_len;
        if sequence.wanted() == 0 {
            self.end(id, Finish::Length);
        }
    }

    /// Returns the counts of the statistics so far.
    pub(super) fn counts(&self) -> SchedulerCounts {
        let Self { preempted, prefixes, drafts, .. } = self;
        SchedulerCounts { preempted: *preempted, prefixes: *prefixes, drafts: drafts.clone() }
    }

    /// Puts earlier counts back.
    pub(super) fn set_counts(&mut self, counts: SchedulerCounts) {
        SchedulerCounts { preempted: self.preempted, prefixes: self.prefixes, drafts: self.drafts } = counts;
    }

    /// Returns the engine's statistics.
    pub(super) fn stats(&self) -> EngineStats {
        EngineStats {
            running: self.active.len(),
            waiting: self.waiting.len(),
            preempted: self.preempted,
            pages: self.pages.pages(),
            pages_in_use: self.pages.pages() - self.pages.available(),
            pages_cached: self.pages.cached(),
            prefixes: PrefixCounts { pages_evicted: self.pages.evicted(), ..self.prefixes },
            drafts: self.drafts.clone(),
            step_times: None,
        }
    }

    /// Returns whether no sequences are left.
    pub(super) fn is_idle(&self) -> bool {
        self.active.is_empty() && self.waiting.is_empty() && self.finished.is_empty()
    }

    /// Returns the active sequences, by rank.
    pub(super) fn active(&self) -> &[Sequence<B>] {
        &self.active
    }

    /// Returns the active sequences, by rank.
    pub(super) fn active_mut(&mut self) -> &mut [Sequence<B>] {
        &mut self.active
    }

    /// Iterates over the active sequences, then over the waiting sequences.
    pub(super) fn sequences_mut(&mut self) -> impl Iterator<Item = &mut Sequence<B>> {
        self.active.iter_mut().chain(&mut self.waiting)
    }

    /// Returns the reports of requests that ended outside a step.
    pub(super) fn take_finished(&mut self) -> Vec<Committed> {
        std::mem::take(&mut self.finished)
    }

    /// Admits waiting requests, plans a step, and reserves the cache pages that the step needs, if necessary by taking
    /// pages from the sequences with the highest ranks.
    pub(super) fn plan(&mut self, policy: &mut dyn Policy) -> Vec<SequencePlan> {
        self.admit();
        let choices = self.choose(policy);
        let mut plans = Vec::new();
        let mut row_budget = self.options.prefill_rows;
        let mut index = 0;
        while index < self.active.len() {
            self.reuse_pages(index);
            let work = self.active[index].work(row_budget);
            let plan = self.plan_sequence(index, work, choices.get(index).copied());
            if plan.rows() == 0 || self.waits_for_pages(index) {
                index += 1;
                continue;
            }
            if !self.reserve(index, self.active[index].cached + plan.rows()) {
                // The sequence had the highest rank and gave up its own pages, so no other sequence comes after it.
                break;
            }
            if plan.work != Work::Decode {
                row_budget -= plan.rows();
            }
            plans.push(plan);
            index += 1;
        }
        plans
    }

    /// Moves waiting requests into the batch while the cache has room for all their tokens and a block.
    fn admit(&mut self) {
        while let Some(sequence) = self.waiting.front() {
            let block = sequence.tokens.len() + sequence.block_size;
            let needed = self.pages.pages_for(block).min(self.pages.pages());
            let needed = needed - self.pages.reusable_and_owned(sequence.to_read()).min(needed);
            let reserved: usize = self
                .active
                .iter()
                .map(|s| self.pages.pages_for(s.tokens.len() + s.block_size).saturating_sub(s.pages.len()))
                .sum();
            let fits = needed + reserved <= self.pages.available();
            if self.active.len() >= self.options.max_batch || !(fits || self.active.is_empty()) {
                return;
            }
            let Some(sequence) = self.waiting.pop_front() else { return };
            let at = self.active.partition_point(|other| other.rank() < sequence.rank());
            self.active.insert(at, sequence);
        }
    }

    /// Adds pages of the prefix cache to sequence `index` if they hold the tokens that the sequence would read next.
    fn reuse_pages(&mut self, index: usize) {
        let sequence = &mut self.active[index];
        if !self.pages.can_reuse(&sequence.pages, sequence.cached) {
            return;
        }
        let mut pages = std::mem::take(&mut sequence.pages);
        let reused = self.pages.reuse(&mut pages, sequence.to_read());
        sequence.pages = pages;
        sequence.cached += reused;
        self.prefixes.tokens_reused += reused as u64;
    }

    /// Returns whether sequence `index` leaves out a step, because a sequence of an earlier rank is reading a page of
    /// tokens that both begin with. Requests with one prompt thus read it once, even if they arrive together.
    fn waits_for_pages(&self, index: usize) -> bool {
        let sequence = &self.active[index];
        let end = sequence.cached + self.pages.page_size();
        let Some(prefix) = sequence.to_read().get(..end) else { return false };
        // After `reuse_pages`, the page is not in the prefix cache, so an earlier sequence has not read it to its end.
        self.pages.can_reuse(&sequence.pages, sequence.cached)
            && self.active[..index].iter().any(|earlier| earlier.to_read().get(..end) == Some(prefix))
    }

    /// Asks the policy how to draft and verify. The result has one choice per active sequence.
    fn choose(&self, policy: &mut dyn Policy) -> Vec<Choice> {
        let mut row_budget = self.options.prefill_rows;
        let views: Vec<SequenceView<'_>> = self
            .active
            .iter()
            .map(|sequence| {
                let draft = sequence.draft.as_ref();
                let (reads, draws) = match sequence.work(row_budget) {
                    Work::Prefill { rows, last } => (rows, last),
                    Work::Recompute { rows } => (rows, false),
                    Work::Decode => (0, true),
                };
                row_budget -= reads;
                SequenceView {
                    number: sequence.id.number(),
                    position: sequence.tokens.len() - 1,
                    block_size: sequence.block_size,
                    reads,
                    draws,
                    may_draft: self.drafter.is_some() && sequence.request.drafting && sequence.block_size > 1,
                    proposes: sequence.proposes && sequence.request.drafting,
                    wanted: sequence.wanted(),
                    confidence: draft.map_or(&[], |draft| &draft.confidence),
                    verify_len: draft.map_or(0, |draft| draft.verify_len),
                    verify_len_is_free: self.options.free_verify_len
                        || sequence.request.sampling.is_greedy()
                        || sequence.request.rule == Rule::Match,
                    tokens_depend_on_verify_len: sequence.compares_distributions(),
                    rule: sequence.request.rule,
                }
            })
            .collect();
        let groups_allowed = self.drafter.is_some_and(DrafterKind::drafts_while_verifying);
        let mut choices = policy.choose(&BatchView { sequences: &views, groups_allowed });
        choices.truncate(views.len());
        for (choice, view) in choices.iter_mut().zip(&views) {
            if !view.verify_len_is_free {
                choice.verify_len = view.verify_len;
                choice.draft = policy.drafts();
            }
        }
        choices.extend(views[choices.len()..].iter().map(|v| Choice::drafting(v, GroupSet::NONE)));
        choices
    }

    /// Plans the step of sequence `index`.
    fn plan_sequence(&self, index: usize, work: Work, choice: Option<Choice>) -> SequencePlan {
        let sequence = &self.active[index];
        let choice = choice.unwrap_or(Choice { verify_len: 0, groups: GroupSet::NONE, draft: true });
        let drafting = choice.draft && sequence.request.drafting;
        let draft = drafting && self.drafter.is_some();
        let propose = drafting && sequence.proposes;
        // The last candidate must have a position within the context.
        let room = self.context_len.saturating_sub(sequence.tokens.len());
        let drafted = sequence.draft.as_ref().map_or(0, |draft| draft.tokens.len());
        let verify_len = match work {
            Work::Decode => self.verify_len(index, choice.verify_len.min(drafted).min(room)),
            Work::Prefill { .. } | Work::Recompute { .. } => 0,
        };
        let groups = match work {
            _ if !draft || sequence.block_size < 2 => Vec::new(),
            Work::Decode => choice.groups.up_to(verify_len).iter().collect(),
            Work::Prefill { rows, last: true } if choice.groups.contains(0) => vec![rows - 1],
            Work::Prefill { .. } | Work::Recompute { .. } => Vec::new(),
        };
        SequencePlan { sequence: index, work, verify_len, groups, draft, propose }
    }

    /// Returns how many of `drafted` tokens sequence `index` verifies in the step.
    ///
    /// If the tokens of a request depend on its verify length, that length must not depend on other requests. The
    /// only limit is then the size of the cache, and sequences of later ranks give up pages if necessary. All other
    /// requests verify no more tokens than they still want, and take no page that another sequence needs.
    fn verify_len(&self, index: usize, drafted: usize) -> usize {
        let sequence = &self.active[index];
        let page_size = self.pages.page_size();
        let fit = |pages: usize| pages.saturating_mul(page_size).saturating_sub(sequence.cached + 1);
        if sequence.compares_distributions() {
            return drafted.min(fit(self.pages.pages()));
        }
        let missing = |s: &Sequence<B>| self.pages.pages_for(s.tokens.len()).saturating_sub(s.pages.len());
        let needed: usize = self.active[index + 1..].iter().map(missing).sum();
        let spare = self.pages.available().saturating_sub(needed);
        let verify_len = drafted.min(fit(sequence.pages.len() + spare));
        // A record shows whole blocks; tokens beyond the request's end are cut after the verification.
        let wanted = if sequence.request.record { drafted } else { sequence.wanted().saturating_sub(1) };
        verify_len.min(wanted)
    }

    /// Reserves pages for `tokens` tokens of sequence `index`, if necessary by taking pages from sequences of later
    /// ranks. Returns `false` if the sequence itself had to leave the batch.
    fn reserve(&mut self, index: usize, tokens: usize) -> bool {
        loop {
            if self.pages.grow(&mut self.active[index].pages, tokens) {
                return true;
            }
            let needed = self.pages.pages_for(tokens);
            let Some(mut last) = self.active.pop() else { return false };
            let itself = self.active.len() == index;
            self.pages.shrink(&mut last.pages, 0);
            last.cached = 0;
            if itself && index == 0 {
                self.report_end(last.id, Finish::Failed(self.exhausted(needed)));
            } else {
                self.preempted += 1;
                self.wait(last);
            }
            if itself {
                return false;
            }
        }
    }

    /// Applies an outcome to its sequence.
    pub(super) fn commit(&mut self, plan: &SequencePlan, outcome: Outcome<B>) -> Committed {
        if plan.work == Work::Decode && outcome.failure.is_none() {
            let accepted = outcome.committed.len().saturating_sub(1);
            self.drafts.add(plan.verify_len, accepted);
            let draft = self.active[plan.sequence].draft.as_ref();
            if let Some(certain) = draft.and_then(|draft| draft.certain.as_ref()) {
                self.proposals.observe(certain, plan.verify_len, accepted);
            }
        }
        if plan.work != Work::Decode {
            self.prefixes.tokens_read += plan.rows() as u64;
        }
        let succeeded = outcome.failure.is_none();
        let sequence = &mut self.active[plan.sequence];
        sequence.cached += outcome.kept;
        if plan.draws() {
            let compared = sequence.compared(plan.verify_len, &outcome.committed);
            sequence.replace_draft(outcome.draft, compared);
            if let Some(PendingDraft { certain: Some(certain), confidence, .. }) = &mut sequence.draft {
                self.proposals.calibrate(certain, confidence);
            }
        }
        let mut tokens = outcome.committed;
        // If the request's end comes before the token that failed, the failure does not count.
        let finish = if tokens.is_empty() { None } else { sequence.cut(&mut tokens) };
        let finish = finish.or(outcome.failure.map(Finish::Failed));
        sequence.tokens.extend_from_slice(&tokens);
        let mut logprobs = outcome.logprobs;
        logprobs.truncate(tokens.len());
        if plan.draws() && succeeded {
            // Drafts beyond the end of the output are not committed. After a fault, the keys and values of other tokens
            // may be not finite on a device whose rows share tiles of keys.
            let committed = sequence.cached.min(sequence.tokens.len());
            self.pages.publish(&mut sequence.pages, &sequence.tokens[..committed]);
        }
        self.pages.shrink(&mut sequence.pages, sequence.cached);
        Committed { id: sequence.id, tokens, logprobs, finish, record: outcome.record }
    }

    fn exhausted(&self, needed: usize) -> DecodeError {
        let (pages, page_size) = (self.pages.pages(), self.pages.page_size());
        DecodeError::CacheExhausted { needed, pages, page_size }
    }
}
