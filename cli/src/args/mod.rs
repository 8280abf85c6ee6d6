//! Values of command-line arguments, and their parsers. This module does not depend on any command.

mod count;
mod decoding;
mod device;
mod drafter;
mod logit_bias;
mod model;
mod processors;
mod sampling;
mod template;
mod token_ids;

pub use count::at_least_one;
pub use decoding::{DecodingArgs, ModeChoice};
pub use device::{DeviceChoice, Dtype, ProductsChoice, WeightsChoice};
pub use drafter::DrafterSource;
pub use model::ModelArgs;
pub use sampling::SamplingArgs;
pub use template::TemplateArgs;
pub use token_ids::TokenIds;
