//! The engine: takes requests, runs decode steps, and reports the tokens that each step committed.

use std::collections::VecDeque;
use std::time::Instant;

use super::error::DecodeError;
use super::pages::PageAllocator;
use super::policy::{BatchView, Choice, Policy, SequenceStep, SequenceView, StepView};
use super::record::{Committed, Finish};
use super::request::{Request, RequestId};
use super::sequence::{Sequence, Work};
use super::step::{self, Outcome, SequencePlan, StepBuffers};
use crate::acceptance::Rule;
use crate::device::Device;
use crate::layout::GroupSet;
use crate::model::Model;

/// Sizes and limits of an engine.
#[derive(Clone, Debug, PartialEq)]
pub struct EngineOptions {
    /// The most sequences in a step; further requests wait.
    pub max_batch: usize,
    /// Tokens that the KV cache holds, over all sequences. A request needs room for its prompt, its output
    /// and one more block, because drafts are verified in the cache.
    pub cache_tokens: usize,
    /// Tokens per page of the cache.
    pub page_size: usize,
    /// The most prompt tokens read in a step, over all sequences, so that long prompts do not delay other
    /// requests.
    pub prefill_rows: usize,
    /// Allows a policy to change the verify length of requests whose tokens depend on it (`rejection` and
    /// `block` above temperature 0). The distribution of their tokens is still the target's, but the tokens
    /// may then depend on the load.
    pub free_verify_len: bool,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self { max_batch: 64, cache_tokens: 16_384, page_size: 16, prefill_rows: 512, free_verify_len: false }
    }
}

/// An engine that serves any number of requests on one model.
///
/// The output of a request depends on the request alone. It does not depend on other requests in the batch,
/// on their number or arrival, or on the policy (with one exception: [`EngineOptions::free_verify_len`]).
///
/// Requests are admitted in order of arrival. If the cache runs out of pages, the youngest sequence gives up
/// its pages and is computed again later; its output does not change.
pub struct Engine<D: Device> {
    model: Model<D>,
    policy: Box<dyn Policy>,
    options: EngineOptions,
    cache: D::Cache,
    pages: PageAllocator,
    buffers: StepBuffers<D>,
    next_id: u64,
    /// Sequences in order of admission.
    active: Vec<Sequence<D::Buffer>>,
    waiting: VecDeque<Sequence<D::Buffer>>,
    /// Requests that ended; reported with the next step.
    finished: Vec<Committed>,
}

impl<D: Device> Engine<D> {
    /// Makes an engine over `model` that drafts according to `policy`.
    ///
    /// # Errors
    ///
    /// [`DecodeError`] if the policy drafts and the model has no drafter, if an option is 0, or if the cache
    /// exceeds the device's memory.
    pub fn new(
        model: Model<D>,
        policy: impl Policy + 'static,
        options: EngineOptions,
    ) -> Result<Self, DecodeError> {
        if policy.drafts() && model.block_size().is_none() {
            return Err(DecodeError::NoDrafter { mode: policy.name() });
        }
        for (option, value) in [
            ("max_batch", options.max_batch),
            ("cache_tokens", options.cache_tokens),
            ("page_size", options.page_size),
            ("prefill_rows", options.prefill_rows),
        ] {
            if value == 0 {
                return Err(DecodeError::ZeroOption { option });
            }
        }
        model.prepare(options.max_batch, options.prefill_rows)?;
        let pages = options.cache_tokens.div_ceil(options.page_size).min(u32::MAX as usize);
        Ok(Self {
            cache: model.new_cache(pages, options.page_size)?,
            pages: PageAllocator::new(pages, options.page_size),
            buffers: StepBuffers::new(&model),
            model,
            policy: Box::new(policy),
            options,
            next_id: 0,
            active: Vec::new(),
            waiting: VecDeque::new(),
            finished: Vec::new(),
        })
    }

    /// Returns the model that the engine runs.
    pub fn model(&self) -> &Model<D> {
        &self.model
    }

    /// Returns the model for another use. Requests that have not ended are dropped.
    pub fn into_model(self) -> Model<D> {
        self.model
    }

    /// Replaces the policy, between steps. Greedy and `match` outputs do not change.
    pub fn set_policy(&mut self, policy: impl Policy + 'static) -> Result<(), DecodeError> {
        if policy.drafts() && self.model.block_size().is_none() {
            return Err(DecodeError::NoDrafter { mode: policy.name() });
        }
        self.policy = Box::new(policy);
        Ok(())
    }

    /// Adds a request. It takes part from the next step on, or waits until there is room.
    pub fn add(&mut self, request: Request) -> Result<RequestId, DecodeError> {
        let config = self.model.config();
        request.validate(config.vocab_size, config.context_len, self.model.block_size())?;
        let needed = self.pages.pages_for(request.prompt.len());
        if needed > self.pages.pages() {
            return Err(self.exhausted(needed));
        }
        let id = RequestId(self.next_id);
        self.next_id += 1;
        let max_len = request.prompt.len().saturating_add(request.max_new_tokens).min(config.context_len);
        if max_len == request.prompt.len() {
            let finish = Some(Finish::Length);
            self.finished.push(Committed { id, tokens: Vec::new(), finish, record: None });
            return Ok(id);
        }
        let trained = self.model.block_size().unwrap_or(1);
        self.waiting.push_back(Sequence {
            id,
            block_size: request.block_size.unwrap_or(trained).min(trained),
            tokens: request.prompt.clone(),
            request,
            cached: 0,
            pages: Vec::new(),
            draft: None,
            max_len,
        });
        Ok(id)
    }

    /// Drops a request, between steps. Returns whether the engine still had it.
    pub fn cancel(&mut self, id: RequestId) -> bool {
        if let Some(index) = self.active.iter().position(|sequence| sequence.id == id) {
            let mut sequence = self.active.remove(index);
            self.pages.shrink(&mut sequence.pages, 0);
            return true;
        }
        let before = self.waiting.len() + self.finished.len();
        self.waiting.retain(|sequence| sequence.id != id);
        self.finished.retain(|committed| committed.id != id);
        self.waiting.len() + self.finished.len() < before
    }

    /// Returns whether no requests are left.
    pub fn is_idle(&self) -> bool {
        self.active.is_empty() && self.waiting.is_empty() && self.finished.is_empty()
    }

    /// Runs one step for every active request and reports what was committed, in order of admission.
    ///
    /// # Errors
    ///
    /// An error of the device. Requests keep their state, and the step may be repeated.
    pub fn step(&mut self) -> Result<Vec<Committed>, DecodeError> {
        self.admit();
        let plans = self.plan();
        let start = Instant::now();
        let outcomes = if plans.is_empty() {
            Vec::new()
        } else {
            let Self { model, cache, buffers, active, waiting, .. } = self;
            let model = &*model;
            for (index, sequence) in active.iter_mut().chain(waiting).enumerate() {
                if !plans.iter().any(|plan| plan.sequence == index && plan.draws()) {
                    buffers.set_aside(model, sequence)?;
                }
            }
            model.device().run(|| step::run(model, cache, buffers, active, &plans))?
        };
        let steps: Vec<SequenceStep> =
            plans.iter().zip(&outcomes).map(|(plan, outcome)| self.sequence_step(plan, outcome)).collect();
        self.policy.observe(&StepView { seconds: start.elapsed().as_secs_f64(), sequences: &steps });
        let mut committed = std::mem::take(&mut self.finished);
        for (plan, outcome) in plans.iter().zip(outcomes) {
            committed.push(self.commit(plan, outcome));
        }
        for report in committed.iter().filter(|report| report.finish.is_some()) {
            self.cancel(report.id);
        }
        Ok(committed)
    }

    fn sequence_step(&self, plan: &SequencePlan, outcome: &Outcome<D::Buffer>) -> SequenceStep {
        SequenceStep {
            mode: (plan.work == Work::Decode).then(|| plan.mode()),
            had_draft: self.active[plan.sequence].draft.is_some(),
            drafted: outcome.draft.is_some(),
            committed: outcome.committed.len(),
        }
    }

    fn exhausted(&self, needed: usize) -> DecodeError {
        let (pages, page_size) = (self.pages.pages(), self.pages.page_size());
        DecodeError::CacheExhausted { needed, pages, page_size }
    }

    /// Moves waiting requests into the batch while the cache has room for all their tokens and a block.
    fn admit(&mut self) {
        while let Some(sequence) = self.waiting.front() {
            let needed = self.pages.pages_for(sequence.tokens.len() + sequence.block_size);
            let promised: usize = self
                .active
                .iter()
                .map(|s| self.pages.pages_for(s.tokens.len() + s.block_size).saturating_sub(s.pages.len()))
                .sum();
            let fits = needed + promised <= self.pages.available();
            if self.active.len() >= self.options.max_batch || !(fits || self.active.is_empty()) {
                return;
            }
            self.active.extend(self.waiting.pop_front());
        }
    }

    /// Plans a step and reserves the cache pages that it needs, if necessary by taking pages from the
    /// youngest sequences.
    fn plan(&mut self) -> Vec<SequencePlan> {
        let choices = self.choose();
        let mut plans = Vec::new();
        let mut row_budget = self.options.prefill_rows;
        let mut index = 0;
        while index < self.active.len() {
            let sequence = &self.active[index];
            let work = sequence.work(row_budget);
            let plan = self.plan_sequence(index, work, choices.get(index).copied());
            if plan.rows() == 0 {
                index += 1;
                continue;
            }
            if !self.reserve(index, self.active[index].cached + plan.rows()) {
                // The sequence itself was the youngest and gave up its pages, so it was the last one.
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

    /// Asks the policy. The result has one choice per active sequence.
    fn choose(&mut self) -> Vec<Choice> {
        let views: Vec<SequenceView<'_>> = self
            .active
            .iter()
            .map(|sequence| {
                let draft = sequence.draft.as_ref();
                SequenceView {
                    position: sequence.tokens.len() - 1,
                    block_size: sequence.block_size,
                    confidence: draft.map_or(&[], |draft| &draft.confidence),
                    verify_len: draft.map_or(0, |draft| draft.verify_len),
                    verify_len_is_free: self.options.free_verify_len
                        || sequence.request.sampling.is_greedy()
                        || sequence.request.rule == Rule::Match,
                    rule: sequence.request.rule,
                }
            })
            .collect();
        let mut choices = self.policy.choose(&BatchView { sequences: &views });
        choices.truncate(views.len());
        for (choice, view) in choices.iter_mut().zip(&views) {
            if !view.verify_len_is_free {
                choice.verify_len = view.verify_len;
                choice.draft = self.policy.drafts();
            }
        }
        choices.extend(views[choices.len()..].iter().map(|v| Choice::drafting(v, GroupSet::NONE)));
        choices
    }

    fn plan_sequence(&self, index: usize, work: Work, choice: Option<Choice>) -> SequencePlan {
        let sequence = &self.active[index];
        let choice = choice.unwrap_or(Choice { verify_len: 0, groups: GroupSet::NONE, draft: true });
        let draft = choice.draft && self.model.block_size().is_some();
        // The last candidate must have a position within the context.
        let room = self.model.config().context_len.saturating_sub(sequence.tokens.len());
        let drafted = sequence.draft.as_ref().map_or(0, |draft| draft.tokens.len());
        let verify_len = match work {
            Work::Decode => choice.verify_len.min(drafted).min(room),
            Work::Prefill { .. } | Work::Recompute { .. } => 0,
        };
        let groups = match work {
            _ if !draft || sequence.block_size < 2 => Vec::new(),
            Work::Decode => choice.groups.up_to(verify_len).iter().collect(),
            Work::Prefill { rows, last: true } if choice.groups.contains(0) => vec![rows - 1],
            Work::Prefill { .. } | Work::Recompute { .. } => Vec::new(),
        };
        SequencePlan { sequence: index, work, verify_len, groups, draft }
    }

    /// Reserves pages for `tokens` tokens of sequence `index`, if necessary by taking pages from younger
    /// sequences. Returns `false` if the sequence itself had to leave the batch.
    fn reserve(&mut self, index: usize, tokens: usize) -> bool {
        loop {
            if self.pages.grow(&mut self.active[index].pages, tokens) {
                return true;
            }
            let needed = self.pages.pages_for(tokens);
            let Some(mut youngest) = self.active.pop() else { return false };
            let itself = self.active.len() == index;
            self.pages.shrink(&mut youngest.pages, 0);
            youngest.cached = 0;
            if itself && index == 0 {
                let finish = Some(Finish::Failed(self.exhausted(needed)));
                let tokens = Vec::new();
                self.finished.push(Committed { id: youngest.id, tokens, finish, record: None });
            } else {
                self.waiting.push_front(youngest);
            }
            if itself {
                return false;
            }
        }
    }

    /// Applies an outcome to its sequence.
    fn commit(&mut self, plan: &SequencePlan, outcome: Outcome<D::Buffer>) -> Committed {
        let sequence = &mut self.active[plan.sequence];
        sequence.cached += outcome.kept;
        if plan.draws() {
            sequence.draft = outcome.draft;
        }
        let mut tokens = outcome.committed;
        let finish = if tokens.is_empty() { None } else { sequence.cut(&mut tokens) };
        sequence.tokens.extend_from_slice(&tokens);
        self.pages.shrink(&mut sequence.pages, sequence.cached);
        Committed { id: sequence.id, tokens, finish, record: outcome.record }
    }
}
