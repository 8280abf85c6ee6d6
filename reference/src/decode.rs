//! The complete decode loop (FlexDraft, arXiv 2605.20022) for one sequence, in its plainest and slowest form: nothing
//! is cached, and every step computes everything again from the token ids.
//!
//! In a step, the newest token c_0 is at position n. Of the draft tokens d_1..d_{S−1}, the first v are verified:
//!
//! 1. the target computes logits after candidates c_0 = newest, c_i = d_i, i = 0..=v, and [`crate::process`] edits
//!    them, each row with its own history;
//! 2. a rule of [`crate::accept`] gives the accepted length a and the bonus token;
//! 3. c_0..c_a are clean now; the mask group that follows c_a and the bonus token give the next draft, slot j at
//!    position n + a + 1 + j ([`crate::model`] has the two kinds of drafters); bias, bit mask and bad words of one id
//!    edit its logits too, if the request asks for it;
//! 4. its confidences give the next v ([`crate::schedule`]).
//!
//! The prefill is a step whose candidates are the prompt, all accepted. [`crate::random`] defines the random numbers.

use crate::accept::{self, Rule, Verdict};
use crate::chain::chained_logits;
use crate::float::Float;
use crate::model::{DraftRow, Drafter, Target, draft_rows, target_logits};
use crate::process::{History, Processors, process, process_draft};
use crate::propose::Proposal;
use crate::random::{Numbers, Purpose};
use crate::sample::{confidence, draw, draw_by_weights};
use crate::schedule::{Strategy, next_verify_len};
use crate::warp::{Distribution, Warping, warp};

/// A request to decode one sequence.
#[derive(Clone, Debug)]
pub struct Request {
    /// The prompt's token ids, at least one.
    pub prompt: Vec<u32>,
    /// Maximum number of tokens to produce.
    pub max_new_tokens: usize,
    /// Tokens after which the output ends; the stop token itself is kept.
    pub stop_tokens: Vec<u32>,
    /// Processors of the target's logits. Every row must keep an id.
    pub processors: Processors,
    /// Whether bias, bit mask and bad words of one id change the drafter's logits too.
    pub processors_on_drafts: bool,
    /// Warping, which turns logits into distributions, for target and drafter alike.
    pub warping: Warping,
    /// Acceptance rule for draft tokens; at temperature 0 acceptance is greedy for every rule.
    pub rule: Rule,
    /// Seed of all random numbers.
    pub seed: u64,
    /// Block size S: the number of slots per block.
    pub block_size: usize,
    /// Confidence threshold t of the verify length; 0 is off.
    pub threshold: f64,
    /// The way in which confidences are compared with the threshold.
    pub strategy: Strategy,
}

/// A draft: the tokens that a mask group predicts, or that a source outside the model proposes, after the bonus token.
#[derive(Clone, Debug, PartialEq)]
pub struct Draft<F> {
    /// Draft tokens d_1..d_{S−1}; a proposal has its own length.
    pub tokens: Vec<u32>,
    /// The distribution that each draft token was drawn from.
    pub distributions: Vec<Distribution<F>>,
    /// The confidence of each draft token; empty for a proposal.
    pub confidence: Vec<F>,
    /// Number v of draft tokens that the next step verifies.
    pub verify_len: usize,
}

/// The record of one decode step.
#[derive(Clone, Debug, PartialEq)]
pub struct Step<F> {
    /// Position n of candidate c_0, the bonus token of the step before.
    pub start: usize,
    /// Number v of verified draft tokens.
    pub verify_len: usize,
    /// Candidate c_0 and all S − 1 draft tokens; the first v draft tokens were verified.
    pub candidates: Vec<u32>,
    /// Accepted length a: the number of accepted draft tokens.
    pub accepted: usize,
    /// The new bonus token, at position n + a + 1.
    pub bonus: u32,
    /// The draft for the next step.
    pub draft: Draft<F>,
}

/// The result of decoding a request.
#[derive(Clone, Debug, PartialEq)]
pub struct Decoded<F> {
    /// The tokens after the prompt.
    pub output: Vec<u32>,
    /// The draft that the prefill made for the first step.
    pub first_draft: Draft<F>,
    /// The steps after the prefill. The last step may have committed more tokens than the output holds.
    pub steps: Vec<Step<F>>,
}

/// Decodes autoregressively: the token at position m is drawn from the target's distribution after the tokens before
/// it, with the target-draw random numbers of position m.
pub fn autoregressive<F: Float>(target: &Target<F>, request: &Request) -> Vec<u32> {
    let mut tokens = request.prompt.clone();
    while !is_finished(request, &tokens) {
        tokens.push(target_draw(
            request,
            &target_distributions(target, request, &tokens, 1)[0],
            tokens.len(),
        ));
    }
    output(request, &tokens)
}

/// Decodes a request with a drafter.
pub fn decode<F: Float>(target: &Target<F>, drafter: &Drafter<F>, request: &Request) -> Decoded<F> {
    decode_drafts(target, request, |tokens| make_draft(target, drafter, request, tokens))
}

/// Decodes a request with proposals from outside the model. `propose` gives the proposal after the tokens so far, the
/// bonus token last. An empty proposal makes the step autoregressive.
pub fn decode_proposals<F: Float>(
    target: &Target<F>,
    request: &Request,
    mut propose: impl FnMut(&[u32]) -> Proposal<F>,
) -> Decoded<F> {
    decode_drafts(target, request, |tokens| {
        let Proposal { tokens, distributions } = propose(tokens);
        let verify_len = tokens.len();
        Draft { tokens, distributions, confidence: vec![], verify_len }
    })
}

/// Decodes a request whose drafts `make_draft` makes, from the tokens so far.
fn decode_drafts<F: Float>(
    target: &Target<F>,
    request: &Request,
    mut make_draft: impl FnMut(&[u32]) -> Draft<F>,
) -> Decoded<F> {
    // All known tokens: the prompt, the committed tokens, and the newest token, which is the next c_0.
    let mut tokens = request.prompt.clone();
    tokens.push(target_draw(request, &target_distributions(target, request, &tokens, 1)[0], tokens.len()));
    let first_draft = make_draft(&tokens);

    let mut draft = first_draft.clone();
    let mut steps = vec![];
    while !is_finished(request, &tokens) {
        let start = tokens.len() - 1;
        let candidates = [&tokens[start..], &draft.tokens[..]].concat();
        let verify_len = draft.verify_len;
        let verified = [&tokens[..], &draft.tokens[..verify_len]].concat();

        let p = target_distributions(target, request, &verified, verify_len + 1);
        let Verdict { accepted, bonus } = verify(request, &p, &draft, start);

        tokens.extend(&draft.tokens[..accepted]);
        tokens.push(bonus);
        draft = make_draft(&tokens);
        steps.push(Step { start, verify_len, candidates, accepted, bonus, draft: draft.clone() });
    }
    Decoded { output: output(request, &tokens), first_draft, steps }
}

/// Returns the target's distributions after each of the last `rows` tokens of `tokens`; the history of a row ends with
/// its own token.
fn target_distributions<F: Float>(
    target: &Target<F>,
    request: &Request,
    tokens: &[u32],
    rows: usize,
) -> Vec<Distribution<F>> {
    let logits = target_logits(target, tokens);
    let distribution = |len: usize| {
        let history = History {
            tokens: &tokens[..len],
            prompt_len: request.prompt.len(),
            end_ids: &request.stop_tokens,
        };
        warp(&process(&logits[len - 1], &request.processors, history), &request.warping)
    };
    (tokens.len() - rows + 1..=tokens.len()).map(distribution).collect()
}

fn target_draw<F: Float>(request: &Request, p: &Distribution<F>, position: usize) -> u32 {
    draw(&p.log_weights, &Numbers::target_draw(request.seed, position))
}

/// Returns the draft that follows `tokens`; the last of these tokens is the bonus token.
fn make_draft<F: Float>(
    target: &Target<F>,
    drafter: &Drafter<F>,
    request: &Request,
    tokens: &[u32],
) -> Draft<F> {
    // The bonus token is candidate c_0 of the step that will verify this draft.
    let start = tokens.len() - 1;
    let rows = draft_rows(target, drafter, &tokens[..start], tokens[start], request.block_size);
    let mut draft = Draft { tokens: vec![], distributions: vec![], confidence: vec![], verify_len: 0 };
    let mut before = tokens[start];
    for (index, DraftRow { hidden, logits }) in rows.into_iter().enumerate() {
        let slot = index + 1;
        let logits =
            if request.processors_on_drafts { process_draft(&logits, &request.processors) } else { logits };
        let logits = match &drafter.chain {
            Some(chain) => chained_logits(target.token_rows(), chain, before, &hidden, &logits),
            None => logits,
        };
        let q = warp(&logits, &request.warping);
        let numbers = match request.rule {
            Rule::Match => Numbers::target_draw(request.seed, start + slot),
            Rule::Rejection | Rule::Block => Numbers::of_step(request.seed, Purpose::DraftDraw, slot, start),
        };
        before = draw(&q.log_weights, &numbers);
        draft.tokens.push(before);
        draft.distributions.push(q);
        draft.confidence.push(confidence(&logits));
    }
    draft.verify_len = next_verify_len(&draft.confidence, F::from_f64(request.threshold), request.strategy);
    draft
}

/// Verifies the first v tokens of `draft` against the target's v + 1 distributions `rows`.
fn verify<F: Float>(request: &Request, rows: &[Distribution<F>], draft: &Draft<F>, start: usize) -> Verdict {
    let verify_len = draft.verify_len;
    let tokens = &draft.tokens[..verify_len];
    let probabilities = |rows: &[Distribution<F>]| -> Vec<Vec<F>> {
        rows.iter().map(|row| row.probabilities.clone()).collect()
    };
    let (p, q) = (probabilities(rows), probabilities(&draft.distributions[..verify_len]));

    let numbers = |purpose, slot| Numbers::of_step(request.seed, purpose, slot, start);
    let uniforms: Vec<F> = (1..=verify_len).map(|i| numbers(Purpose::Acceptance, i).uniform()).collect();
    let final_draw =
        |accepted, weights: &[F]| draw_by_weights(weights, &numbers(Purpose::FinalDraw, accepted));
    let target_draw = |i: usize| target_draw(request, &rows[i], start + i + 1);

    match request.rule {
        _ if request.warping.temperature == 0.0 => accept::greedy(&p, tokens),
        // Without draft tokens a step is autoregressive under every rule.
        _ if verify_len == 0 => accept::matching(tokens, target_draw),
        Rule::Match => accept::matching(tokens, target_draw),
        Rule::Rejection => accept::rejection(&p, &q, tokens, &uniforms, final_draw),
        Rule::Block => accept::block(&p, &q, tokens, &uniforms, final_draw),
    }
}

/// Returns whether all tokens of the output have been decoded.
fn is_finished(request: &Request, tokens: &[u32]) -> bool {
    let new = &tokens[request.prompt.len()..];
    new.len() >= request.max_new_tokens || new.iter().any(|token| request.stop_tokens.contains(token))
}

/// Returns the tokens after the prompt, cut after the first stop token and at the length limit.
fn output(request: &Request, tokens: &[u32]) -> Vec<u32> {
    let new = &tokens[request.prompt.len()..];
    let stop = new.iter().position(|token| request.stop_tokens.contains(token));
    let len = stop.map_or(new.len(), |index| index + 1).min(request.max_new_tokens);
    new[..len].to_vec()
}
