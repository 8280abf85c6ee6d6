//! The engine: takes requests, runs decode steps, and reports the tokens that each step committed.

use std::cell::RefCell;
use std::time::Instant;

use super::error::DecodeError;
use super::explanation::Explanation;
use super::options::EngineOptions;
use super::pages::PageAllocator;
use super::policy::{Policy, SequenceStep, StepView};
use super::record::{Committed, Finish};
use super::request::Request;
use super::request_id::{RequestId, RequestIds};
use super::scheduler::Scheduler;
use super::sequence::{Callbacks, Sequence, Work};
use super::stats::EngineStats;
use super::step::{self, Outcome, PaddingPages, SequencePlan, StepBuffers};
use crate::device::Device;
use crate::model::Model;

/// An engine that serves any number of requests on one model.
///
/// The output of a request depends on the request alone. It does not depend on other requests in the batch,
/// on their number or arrival, or on the policy (with one exception: [`EngineOptions::free_verify_len`]).
///
/// Requests are admitted by [priority](Request::priority), then in order of arrival. If the cache runs out of pages, the
/// request that would be admitted last gives up its pages and is computed again later; its output does not change.
///
/// Requests that begin with the same tokens share the cache pages of these tokens, and only the first of them reads the
/// tokens ([`EngineOptions::prefix_cache`]). This holds for samples of one prompt and for the turns of a conversation.
pub struct Engine<D: Device> {
    model: Model<D>,
    policy: Box<dyn Policy>,
    cache: D::Cache,
    buffers: StepBuffers<D>,
    scheduler: Scheduler<D::Buffer>,
    ids: RequestIds,
}

impl<D: Device> Engine<D> {
    /// Makes an engine over `model` that drafts according to `policy`.
    ///
    /// # Errors
    ///
    /// [`DecodeError`] if the policy drafts and the model has no drafter ([`EngineOptions::proposers`] allows that for
    /// policies without mask groups), if the policy needs mask groups in the verification pass and the drafter cannot
    /// draft there, if an option is 0, or if the cache exceeds the device's memory.
    pub fn new(
        model: Model<D>,
        policy: impl Policy + 'static,
        options: EngineOptions,
    ) -> Result<Self, DecodeError> {
        check_policy(&policy, &model, options.proposers)?;
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
        let allocator = PageAllocator::new(pages, options.page_size, options.prefix_cache);
        let (padding, padding_pages) = match model.device().pads_steps() {
            true => (PaddingPages::from(pages, options.page_size), PaddingPages::count(options.page_size)),
            false => (PaddingPages::default(), 0),
        };
        let (context_len, drafter) = (model.config().context_len, model.drafter_kind());
        Ok(Self {
            cache: model.new_cache(pages + padding_pages, options.page_size)?,
            buffers: StepBuffers::new(&model, padding),
            scheduler: Scheduler::new(allocator, options, context_len, drafter),
            model,
            policy: Box::new(policy),
            ids: RequestIds::of_new_engine(),
        })
    }

    /// Returns the model that the engine runs.
    pub fn model(&self) -> &Model<D> {
        &self.model
    }

    /// Ends the engine and returns its model. Requests that have not ended are dropped.
    pub fn into_model(self) -> Model<D> {
        self.model
    }

    /// Replaces the policy, between steps. Greedy and `match` outputs do not change.
    pub fn set_policy(&mut self, policy: impl Policy + 'static) -> Result<(), DecodeError> {
        check_policy(&policy, &self.model, self.scheduler.options().proposers)?;
        self.policy = Box::new(policy);
        Ok(())
    }

    /// Returns the engine's options.
    pub(super) fn options(&self) -> &EngineOptions {
        self.scheduler.options()
    }

    /// Runs `run` with another policy. Policy and statistics are the same afterwards.
    pub(super) fn aside<T>(&mut self, policy: Box<dyn Policy>, run: impl FnOnce(&mut Self) -> T) -> T {
        let own = std::mem::replace(&mut self.policy, policy);
        let counts = self.scheduler.counts();
        let result = run(self);
        self.scheduler.set_counts(counts);
        self.policy = own;
        result
    }

    /// Adds a request. It takes part from the next step on, or waits until there is room.
    ///
    /// # Errors
    ///
    /// [`DecodeError`] if a parameter of the request is out of range, or if the KV cache is too small for its prompt
    /// and its output, even with no other request.
    pub fn add(&mut self, mut request: Request) -> Result<RequestId, DecodeError> {
        let config = self.model.config();
        request.validate(config.vocab_size, config.context_len, self.model.block_size())?;
        let max_len = self.max_len(request.prompt.len(), request.max_new_tokens)?;
        let id = self.ids.take();
        let trained = self.model.block_size().unwrap_or(1);
        self.scheduler.add(Sequence {
            id,
            block_size: request.block_size.unwrap_or(trained).min(trained),
            prediction: self.model.prediction(),
            tokens: request.prompt.clone(),
            proposes: request.proposer.is_some(),
            callbacks: RefCell::new(Callbacks {
                logits_hook: request.logits_hook.take(),
                mask_provider: request.mask_provider.take(),
                proposer: request.proposer.take(),
            }),
            request,
            cached: 0,
            pages: Vec::new(),
            draft: None,
            unverified: None,
            max_len,
        });
        Ok(id)
    }

    /// Drops a request, between steps. Returns whether the engine still had it.
    pub fn cancel(&mut self, id: RequestId) -> bool {
        self.scheduler.cancel(id)
    }

    /// Ends a request, between steps: the next step reports [`Finish::Ended`]. Its tokens so far remain valid. Returns
    /// whether the request was still running or waiting.
    pub fn finish(&mut self, id: RequestId) -> bool {
        self.scheduler.end(id, Finish::Ended)
    }

    /// Replaces the limit on the number of tokens that a request may generate, between steps. A request that has
    /// generated this number already ends: the next step reports [`Finish::Length`]. Returns whether the request was
    /// still running or waiting.
    ///
    /// # Errors
    ///
    /// [`DecodeError::CacheExhausted`] if the KV cache is too small for the output; the request keeps its limit.
    pub fn set_max_new_tokens(&mut self, id: RequestId, max_new_tokens: usize) -> Result<bool, DecodeError> {
        let Some(sequence) = self.scheduler.sequence(id) else { return Ok(false) };
        let max_len = self.max_len(sequence.request.prompt.len(), max_new_tokens)?;
        self.scheduler.set_max_len(id, max_len);
        Ok(true)
    }

    /// Returns the total length at which a request ends, prompt included, after checking that the cache has room for
    /// it.
    fn max_len(&self, prompt_len: usize, max_new_tokens: usize) -> Result<usize, DecodeError> {
        let max_len = prompt_len.saturating_add(max_new_tokens).min(self.model.config().context_len);
        // The last token is never an input, so its keys and values are never computed.
        self.scheduler.check_room(prompt_len.max(max_len.saturating_sub(1)))?;
        Ok(max_len)
    }

    /// Returns statistics of the engine. Before this call the engine only keeps a few counts for them.
    pub fn stats(&self) -> EngineStats {
        EngineStats { step_times: self.policy.step_times(), ..self.scheduler.stats() }
    }

    /// Returns why the policy chose the last step, if the policy compares steps.
    pub fn explanation(&self) -> Option<Explanation> {
        self.policy.explanation()
    }

    /// Returns whether no requests are left.
    pub fn is_idle(&self) -> bool {
        self.scheduler.is_idle()
    }

    /// Runs one step for every active request and reports what was committed: first the requests that ended since the
    /// last step, then the others by priority and arrival.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Step`], which names the requests, if the device fails, or
    /// [`DecodeError::DraftsAfterVerification`] if the policy asks for mask groups that the drafter cannot make.
    /// Requests keep their state, and the step may be repeated. A fault of a single request (its logits, its hooks, its
    /// memory) is not an error of the step: the report of that request has [`Finish::Failed`].
    pub fn step(&mut self) -> Result<Vec<Committed>, DecodeError> {
        self.scheduler.expire(Instant::now());
        let plans = self.scheduler.plan(&mut *self.policy);
        if plans.iter().any(|plan| !plan.groups.is_empty()) {
            check_groups(self.policy.name(), &self.model)?;
        }
        let start = Instant::now();
        let outcomes = if plans.is_empty() { Vec::new() } else { self.run(&plans)? };
        let steps: Vec<SequenceStep> =
            plans.iter().zip(&outcomes).map(|(plan, outcome)| self.sequence_step(plan, outcome)).collect();
        self.policy.observe(&StepView { seconds: start.elapsed().as_secs_f64(), sequences: &steps });
        let mut committed = self.scheduler.take_finished();
        for (plan, outcome) in plans.iter().zip(outcomes) {
            committed.push(self.scheduler.commit(plan, outcome));
        }
        for report in committed.iter().filter(|report| report.finish.is_some()) {
            self.cancel(report.id);
        }
        Ok(committed)
    }

    /// Runs the step that `plans` describe. Sequences keep their state.
    fn run(&mut self, plans: &[SequencePlan]) -> Result<Vec<Outcome<D::Buffer>>, DecodeError> {
        let Self { model, cache, buffers, scheduler, .. } = self;
        let model = &*model;
        for (index, sequence) in scheduler.sequences_mut().enumerate() {
            if !plans.iter().any(|plan| plan.sequence == index && plan.draws()) {
                let id = sequence.id;
                let failed = |source| DecodeError::Step { requests: vec![id], source };
                buffers.set_aside(model, sequence).map_err(failed)?;
            }
        }
        let active = scheduler.active_mut();
        let outcomes = model.device().run(|| step::run(model, cache, buffers, &mut *active, plans));
        outcomes.map_err(|source| {
            let requests = plans.iter().map(|plan| active[plan.sequence].id).collect();
            DecodeError::Step { requests, source }
        })
    }

    fn sequence_step(&self, plan: &SequencePlan, outcome: &Outcome<D::Buffer>) -> SequenceStep {
        let sequence = &self.scheduler.active()[plan.sequence];
        let drafted = outcome.draft.is_some();
        let decoded = plan.work == Work::Decode && outcome.failure.is_none();
        SequenceStep {
            index: plan.sequence,
            mode: decoded.then(|| plan.mode()),
            cached: sequence.cached,
            candidates: plan.rows(),
            groups: plan.groups.len(),
            block_size: sequence.block_size,
            had_draft: sequence.draft.is_some(),
            drafted,
            // The last candidate that stays in the cache is the one that the draft's group follows.
            drafted_apart: drafted
                && plan.draft
                && sequence.block_size > 1
                && !plan.groups.contains(&outcome.kept.saturating_sub(1)),
            committed: outcome.committed.len(),
            compared: if decoded { sequence.compared(plan.verify_len, &outcome.committed) } else { None },
        }
    }
}

/// Checks that the model has a drafter if `policy` drafts, unless `proposers` may draft alone, and that the drafter can
/// draft in the verification pass if `policy` needs mask groups there.
fn check_policy<D: Device>(
    policy: &impl Policy,
    model: &Model<D>,
    proposers: bool,
) -> Result<(), DecodeError> {
    let needs_drafter = policy.needs_groups() || policy.drafts() && !proposers;
    if needs_drafter && model.drafter_kind().is_none() {
        return Err(DecodeError::NoDrafter { mode: policy.name() });
    }
    if policy.needs_groups() { check_groups(policy.name(), model) } else { Ok(()) }
}

/// Checks that the model's drafter, if there is one, can draft the next block in the verification pass.
fn check_groups<D: Device>(mode: &'static str, model: &Model<D>) -> Result<(), DecodeError> {
    match model.drafter_kind() {
        Some(kind) if !kind.drafts_while_verifying() => {
            Err(DecodeError::DraftsAfterVerification { mode, drafter: kind.name() })
        }
        _ => Ok(()),
    }
}
