//! The arguments of `flexdraft chat`.

use clap::Args;

use crate::args::{DecodingArgs, ModelArgs, SamplingArgs, TemplateArgs};

#[derive(Debug, Args)]
pub struct ChatArgs {
    #[command(flatten)]
    pub model: ModelArgs,

    #[command(flatten)]
    pub template: TemplateArgs,

    #[command(flatten)]
    pub decoding: DecodingArgs,

    #[command(flatten)]
    pub sampling: SamplingArgs,
}
