//! Tests of loading models: files of every format give the weights, tokens and logits that the official tools give, and
//! damaged files give an error that names the problem.

mod bad_gguf;
mod bad_model_files;
mod gguf;
mod models;
mod orthrus;
mod sentencepiece_gguf;
mod smollm2;
mod split_gguf;
#[path = "../support/mod.rs"]
mod support;
mod templates;
mod transformers_logits;

/// The allocator records each thread's largest allocation, which must stay small while a damaged file is read.
#[global_allocator]
static ALLOCATOR: support::bounds::Watched = support::bounds::Watched;
