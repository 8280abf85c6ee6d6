//! The training loop of Attention Tuning and Bonus-guided Calibration.

mod batch;
mod clean;
mod description;
#[cfg(feature = "nccl")]
pub mod nccl;
mod ranks;
mod run;
mod settings;
pub mod walk;

pub use batch::{Batch, Pick, SlotLabels, labelled_rows};
pub use clean::Corpus;
pub use ranks::{Alone, Place, Ranks};
pub use run::{Observer, Outcome, StepMetrics, run};
pub use settings::{Compute, Settings};
