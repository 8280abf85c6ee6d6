//! Tests that the decode loop on the CPU device is lossless: compared with autoregressive decoding, exact
//! probabilities, the reference, and recordings of the official implementation.

mod against_reference;
mod bad_requests;
mod bundled_pair;
mod enumeration;
mod every_mode;
mod faults;
mod flex_law;
mod greedy;
mod independence;
mod logits_hook;
mod logprobs;
mod match_equals_ar;
mod official_fixtures;
mod orthrus_fixtures;
mod pass_invariance;
mod policy_views;
mod prefix_cache;
mod probe;
mod processors;
mod proposals;
mod quantized;
mod requests_in_flight;
mod same_drafter;
mod sampled;
mod sampling_limits;
#[path = "../support/mod.rs"]
mod support;
mod warping;
