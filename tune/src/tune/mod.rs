//! Attention Tuning and Bonus-guided Calibration: the training loop.

mod batch;
mod clean;
mod run;
mod settings;
pub mod walk;

pub use batch::{Batch, Pick, labelled_rows};
pub use clean::Corpus;
pub use run::{Observer, Outcome, StepMetrics, run};
pub use settings::Settings;
