//! Tests that a fault in one request (its logits, its hooks) ends only this request, on the CPU device.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use flexdraft::decode::{DecodeError, Engine, EngineOptions, Mode, Request};
use flexdraft::device::cpu::{Cpu, CpuOptions};
use flexdraft::device::{DeviceError, Precision};
use flexdraft::model::Model;

use crate::sampled::altered::{Alteration, Altered};
use crate::support::models::Spec;
use crate::support::runs::{cpu, engine, run};
use crate::support::{faults, masks};

fn device() -> Cpu {
    Cpu::new(CpuOptions { threads: 1, precision: Precision::Bf16 }).unwrap()
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

#[test]
fn a_device_s_error_names_the_requests_of_its_step_and_ends_none() {
    let spec = Spec::default();
    let requests = || (0..3).map(|token| Request::new(vec![4, token], 15));
    for mode in [Mode::Autoregressive, Mode::Parallel, Mode::Sequential] {
        let expected = run(&mut engine(&spec, mode), requests().collect());
        let device = Altered { cpu: cpu(1), alteration: Alteration::Fails(Arc::new(AtomicUsize::new(0))) };
        let (target, drafter) = spec.weights();
        let model = Model::new(device, &target, Some(&drafter)).unwrap();
        let options = EngineOptions { max_batch: 2, ..EngineOptions::default() };
        let mut engine = Engine::new(model, mode, options).unwrap();
        let ids: Vec<_> = requests().map(|request| engine.add(request).unwrap()).collect();
        let (mut tokens, mut ended, mut errors) = (vec![Vec::new(); 3], [false; 3], 0);
        while !engine.is_idle() {
            match engine.step() {
                Ok(reports) => {
                    for report in reports {
                        let index = ids.iter().position(|&id| id == report.id).unwrap();
                        tokens[index].extend(report.tokens);
                        ended[index] |= report.finish.is_some();
                    }
                }
                Err(DecodeError::Step { requests, source }) => {
                    assert_eq!(source, DeviceError::OutOfMemory { what: "planted", bytes: 1 });
                    let running = ids.iter().zip(ended).filter(|(_, ended)| !ended).map(|(&id, _)| id);
                    assert_eq!(requests, running.take(2).collect::<Vec<_>>());
                    errors += 1;
                }
                Err(error) => panic!("{error:?}"),
            }
        }
        assert!(errors > 3);
        assert!(
            tokens.iter().zip(&expected).all(|(tokens, expected)| *tokens == expected.tokens),
            "{mode:?}"
        );
    }
}
