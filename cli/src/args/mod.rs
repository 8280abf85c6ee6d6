//! Values of command-line arguments, and their parsers. This module does not depend on any command.

mod count;
mod decoding;
mod device;
mod drafter;
mod token_ids;

pub use count::at_least_one;
pub use decoding::{ModeChoice, RuleChoice, StrategyChoice};
pub use device::{DeviceChoice, Dtype, ProductsChoice};
pub use drafter::DrafterSource;
pub use token_ids::TokenIds;
