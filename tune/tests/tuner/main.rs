//! Tests of making drafters: gradients, the training loop, data, evaluation, and the `flexdraft-tune` command.

mod chain;
mod command;
mod common;
mod data;
mod end_to_end;
mod generated;
mod gradients;
mod init_from;
mod orthrus;
mod pretrain;
mod ranks;
mod same_as_engine;
mod tuning;

// The number of cases of a property test, in the whole workspace.
#[allow(dead_code)]
#[path = "../../../tests/support/properties.rs"]
mod properties;
