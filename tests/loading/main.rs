//! Loading models: files of every format give the weights, tokens and logits that the official tools give, and damaged
//! files give an error that names the thing.

mod bad_gguf;
mod bad_model_files;
mod gguf;
mod models;
mod smollm2;
#[path = "../support/mod.rs"]
mod support;
mod transformers_logits;

/// Remembers each thread's largest request, which reading a damaged file must keep small.
#[global_allocator]
static ALLOCATOR: support::bounds::Watched = support::bounds::Watched;
