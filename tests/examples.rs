//! Runs every example of `examples/`, so that each one keeps working as written.

#![allow(missing_docs)]

#[path = "../examples/custom_policy.rs"]
mod custom_policy;
#[path = "../examples/generate.rs"]
mod generate;
#[path = "../examples/kernels_on_the_emulator.rs"]
mod kernels_on_the_emulator;
#[path = "../examples/logits_hook.rs"]
mod logits_hook;
#[path = "../examples/lookup_settings.rs"]
mod lookup_settings;
#[path = "../examples/proposer.rs"]
mod proposer;
#[path = "../examples/raw_pointers_and_stream.rs"]
mod raw_pointers_and_stream;

#[test]
fn generates_text() {
    generate::main().unwrap();
}

#[test]
fn runs_a_policy_of_its_own() {
    custom_policy::main().unwrap();
}

#[test]
fn edits_logits() {
    logits_hook::main().unwrap();
}

#[test]
fn measures_prompt_lookup() {
    lookup_settings::main().unwrap();
}

#[test]
fn proposes_drafts() {
    proposer::main().unwrap();
}

#[test]
fn runs_a_kernel_on_the_emulator() {
    kernels_on_the_emulator::main().unwrap();
}

/// Without a GPU, the example says so and ends.
#[test]
fn takes_raw_pointers_and_a_stream() {
    raw_pointers_and_stream::main().unwrap();
}
