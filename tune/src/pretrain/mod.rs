//! A small target from text files: a tokenizer, and a model of the Qwen3 architecture trained from nothing.
//!
//! It serves where a target has to be small enough to ship, or to be tuned in minutes. What comes out is a
//! Hugging Face directory like any other target's.

mod bpe;
mod corpus;
mod export;
mod model;
mod random;
mod run;
mod settings;

pub use bpe::{END_OF_TEXT, train_tokenizer};
pub use corpus::{Tokens, read_documents};
pub use export::{export, write_config};
pub use model::{BatchLayout, PretrainModel};
pub use run::{Event, Paths, pretrain};
pub use settings::{PretrainSettings, Shape};
