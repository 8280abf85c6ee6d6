//! The training loops of Attention Tuning with Bonus-guided Calibration, and of Chained Calibration.

mod batch;
mod chain_rows;
mod chain_run;
mod chain_settings;
mod checks;
mod clean;
mod compute;
mod description;
mod kept_slots;
#[cfg(feature = "nccl")]
pub mod nccl;
mod ranks;
mod run;
mod run_loop;
mod settings;
mod start;
mod training;
pub mod walk;

pub use batch::{Batch, Pick, SlotLabels, labelled_rows};
pub use chain_run::{FrozenSource, run_chain};
pub use chain_settings::{ChainChoice, ChainSettings, Kind};
pub use clean::Corpus;
pub use compute::Compute;
pub use ranks::{Alone, Place, Ranks};
pub use run::{TunedTarget, run};
pub use run_loop::{Observer, Outcome, StepMetrics};
pub use settings::{DrafterChoice, Settings};
pub use training::{Training, TrainingSettings};
