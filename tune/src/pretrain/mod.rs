//! Makes a small target from text files: a tokenizer, and a model of the Qwen3 architecture trained from scratch.
//!
//! Such a target is small enough to ship, or to be tuned in minutes. The result is an ordinary Hugging Face
//! directory.

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
