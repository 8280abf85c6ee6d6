//! Tests that a fault in one request (its logits, its hooks) ends only this request, on the GPU device over the SIMT
//! emulator.

use flexdraft::device::gpu::{CpuProducts, Gpu};
use flexdraft::kernels::Kernels;
use flexdraft::runtime::{Simt, SimtOptions};

use crate::support::{faults, masks};

fn device() -> Gpu<CpuProducts> {
    let kernels = Kernels::new(Simt::new(SimtOptions::default()));
    let stream = kernels.runtime().stream();
    Gpu::new(kernels, stream, CpuProducts::new(1).unwrap()).with_split(64)
}

#[test]
fn nan_logits_end_their_request_alone() {
    faults::nan_logits_end_their_request_alone(device);
}

#[test]
fn a_faulty_prompt_leaves_no_pages_to_others() {
    faults::a_faulty_prompt_leaves_no_pages_to_others(device);
}

#[test]
fn an_infinite_logit_ends_an_output_at_its_place() {
    faults::an_infinite_logit_ends_an_output_at_its_place(device);
}

#[test]
fn a_draft_s_faulty_logits_change_no_token() {
    faults::a_draft_s_faulty_logits_change_no_token(device);
}

#[test]
fn a_row_without_an_allowed_id_ends_its_request() {
    masks::a_row_without_an_allowed_id_ends_its_request(device);
}

#[test]
fn drafts_obey_the_mask_if_asked() {
    masks::drafts_obey_the_mask_if_asked(device);
}

#[test]
fn a_provider_forbids_what_a_hook_forbids() {
    masks::a_provider_forbids_what_a_hook_forbids(device);
}

#[test]
fn a_provider_s_mistake_ends_its_request_alone() {
    masks::a_provider_s_mistake_ends_its_request_alone(device);
}

#[test]
fn a_hook_s_mistake_ends_its_request_alone() {
    faults::a_hook_s_mistake_ends_its_request_alone(device);
}

#[test]
fn a_hook_may_fail_after_a_draft_that_is_rejected() {
    faults::a_hook_may_fail_after_a_draft_that_is_rejected(device);
}

#[test]
fn a_proposer_s_mistake_ends_its_request_alone() {
    faults::a_proposer_s_mistake_ends_its_request_alone(device);
}
