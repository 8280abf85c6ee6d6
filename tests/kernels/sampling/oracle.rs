//! The statistics that the kernels must give for a row: the reference in double precision, and the definition of
//! truncation.

use flexdraft::kernels::sampling::RowStats;
use flexdraft::random::Purpose;
use flexdraft::sampling::{SamplingParams, warp};
use flexdraft_reference::random::{Numbers, Purpose as ReferencePurpose};
use flexdraft_reference::sample as reference_sample;
use flexdraft_reference::warp::{self as reference, Distribution, Warping};

use super::way::Way;

const INF: f32 = f32::INFINITY;

pub fn kept_ids(scores: &[f32]) -> Vec<usize> {
    (0..scores.len()).filter(|&id| scores[id] > -INF).collect()
}

/// Returns the ids that truncation kept, according to a row's statistics.
pub fn stated_ids(stats: &RowStats, logits: &[f32]) -> Vec<usize> {
    let score = |logit: f32| match logit {
        _ if logit == stats.max => 0.0,
        _ if logit.is_nan() => -INF,
        _ => (logit - stats.max) * stats.inverse_temperature,
    };
    let kept = |id: usize| {
        let score = score(logits[id]);
        score > -INF
            && match score.total_cmp(&stats.cut_score) {
                std::cmp::Ordering::Greater => true,
                std::cmp::Ordering::Equal => id as i32 <= stats.cut_id,
                std::cmp::Ordering::Less => false,
            }
    };
    (0..logits.len()).filter(|&id| kept(id)).collect()
}

/// Returns whether a prefix sum of top-p is so close to the required mass that rounding may decide which ids are kept.
pub fn is_close_call(logits: &[f32], params: &SamplingParams) -> bool {
    let scores = warp(logits, &SamplingParams { top_p: 1.0, min_p: 0.0, ..*params });
    let mut weights: Vec<f64> = scores.iter().map(|&s| f64::from(s).exp()).filter(|&w| w > 0.0).collect();
    weights.sort_by(|a, b| b.total_cmp(a));
    let total: f64 = weights.iter().sum();
    let target = total * f64::from(params.top_p);
    let mut sum = 0.0;
    weights.iter().any(|weight| {
        sum += weight;
        (sum - target).abs() < 1e-8 * total
    })
}

pub fn reference_numbers(way: &Way) -> Option<Numbers> {
    way.numbers.map(|(seed, purpose, slot, position)| Numbers {
        seed,
        purpose: match purpose {
            Purpose::TargetDraw => ReferencePurpose::TargetDraw,
            Purpose::DraftDraw => ReferencePurpose::DraftDraw,
            Purpose::AcceptanceUniform => ReferencePurpose::Acceptance,
            Purpose::ResidualDraw => ReferencePurpose::FinalDraw,
        },
        slot: slot as u16,
        position: position as u64,
    })
}

/// Compares one row's statistics with the reference on the same logits.
pub fn check_row(stats: &RowStats, logits: &[f32], way: &Way) {
    let SamplingParams { temperature, top_k, top_p, min_p } = way.params;
    let exact: Vec<f64> = logits.iter().map(|&l| f64::from(l)).collect();
    let sane = reference::sanitize(&exact);
    let largest = logits.iter().copied().filter(|l| !l.is_nan()).fold(-INF, f32::max);
    assert_eq!(stats.max, largest);
    assert_eq!(stats.inverse_temperature, way.params.inverse_temperature().unwrap_or(0.0));
    close(stats.confidence, reference_sample::confidence(&exact), 1e-5, "confidence");
    let fault = reference_sample::logits_fault(&exact);
    assert_eq!(format!("{:?}", stats.logits_fault()), format!("{fault:?}"));

    let token = usize::try_from(stats.token).unwrap();
    assert_eq!(stats.token_logit, logits[token].max(-INF));
    if temperature == 0.0 || largest == -INF {
        assert_eq!(token, reference_sample::argmax(&sane) as usize);
        assert_eq!((stats.probability, stats.kept, stats.log_sum), (1.0, 1, 0.0));
        let drafted = usize::try_from(way.draft).ok();
        assert_eq!(stats.draft_probability, f32::from(u8::from(drafted == Some(token))));
        return;
    }

    // The kept ids are exactly the ids that the definition of truncation keeps.
    let truncates = (top_k > 0 && top_k < logits.len()) || top_p < 1.0 || min_p > 0.0;
    let kept = stated_ids(stats, logits);
    let expected = kept_ids(&warp(logits, &way.params));
    if kept != expected {
        assert!(
            top_p < 1.0 && is_close_call(logits, &way.params),
            "{} kept, not {}",
            kept.len(),
            expected.len()
        );
    }
    assert!(kept.contains(&token));
    match truncates {
        true => assert_eq!(stats.kept as usize, kept.len()),
        false => assert_eq!((stats.kept as usize, stats.cut_score), (logits.len(), -INF)),
    }

    // The row's distribution in double precision.
    let all = reference::warp(&exact, &Warping::temperature(f64::from(temperature)));
    let sum: f64 = kept.iter().map(|&id| all.log_weights[id].exp()).sum();
    let Distribution { log_weights, .. } = all;
    assert!(
        (f64::from(stats.log_sum) - sum.ln()).abs() < 2e-5,
        "log-sum-exp {}, not {}",
        stats.log_sum,
        sum.ln()
    );
    // The tolerance grows with the score, because the kernel rounds scores to f32 before the exponential.
    let probability = |id: usize| if kept.contains(&id) { log_weights[id].exp() / sum } else { 0.0 };
    let tolerance = |id: usize| 1e-5 + 2e-7 * log_weights[id].abs().min(100.0);
    close(stats.probability, probability(token), tolerance(token), "probability");
    match usize::try_from(way.draft) {
        Ok(id) => close(stats.draft_probability, probability(id), tolerance(id), "draft probability"),
        Err(_) => assert_eq!(stats.draft_probability, 0.0),
    }

    // The drawn token must agree, unless the two best sums of score and Gumbel number are nearly tied.
    let sums: Vec<f64> = match reference_numbers(way) {
        Some(numbers) => kept.iter().map(|&id| log_weights[id] + numbers.gumbel::<f64>(id as u32)).collect(),
        None => kept.iter().map(|&id| log_weights[id]).collect(),
    };
    let best = reference_sample::argmax(&sums) as usize;
    let found = kept.iter().position(|&id| id == token).unwrap();
    let rounding = 4e-6 * (1.0 + sums[best].abs());
    assert!(
        kept[best] == token || (way.numbers.is_some() && sums[best] - sums[found] < rounding),
        "token {token} with {}, not {} with {}",
        sums[found],
        kept[best],
        sums[best]
    );
}

#[track_caller]
pub fn close(found: f32, expected: f64, tolerance: f64, what: &str) {
    let error = (f64::from(found) - expected).abs();
    assert!(
        error <= tolerance * expected.abs().max(1e-30) + 1e-6 * tolerance,
        "{what}: {found}, not {expected}"
    );
}
