//! The command `pretrain`.

use std::path::PathBuf;

use candle_core::Device;
use clap::Args;

use flexdraft_tune::Result;
use flexdraft_tune::optimizer::{AdamSettings, Schedule};
use flexdraft_tune::pretrain::{Event, Intervals, Paths, PretrainSettings, Shape, pretrain};

/// Makes a small target of the Qwen3 architecture from text files.
///
/// Run again with the same arguments, it goes on where it was stopped.
#[derive(Args, Clone, Debug)]
pub struct PretrainArgs {
    /// The text: a file, or a folder whose files are one document each
    #[arg(long, value_name = "PATH")]
    text: PathBuf,
    /// Text that the loss is measured on and that is never learnt
    #[arg(long, value_name = "PATH")]
    heldout: Option<PathBuf>,
    /// The model's folder
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Ids of the tokenizer
    #[arg(long, value_name = "N", default_value_t = 2048)]
    vocab: usize,
    /// Hidden size
    #[arg(long, value_name = "N", default_value_t = 256)]
    hidden: usize,
    /// Decoder layers
    #[arg(long, value_name = "N", default_value_t = 5)]
    layers: usize,
    /// Query heads
    #[arg(long, value_name = "N", default_value_t = 4)]
    heads: usize,
    /// KV heads
    #[arg(long, value_name = "N", default_value_t = 2)]
    kv_heads: usize,
    /// Elements of a head
    #[arg(long, value_name = "N", default_value_t = 64)]
    head_dim: usize,
    /// Columns of the MLP
    #[arg(long, value_name = "N", default_value_t = 704)]
    intermediate: usize,
    /// Positions that the model is trained for
    #[arg(long, value_name = "N", default_value_t = 1024)]
    context: usize,
    /// Tokens of a window
    #[arg(long, value_name = "N", default_value_t = 256)]
    window: usize,
    /// One step in N has windows of the whole context
    #[arg(long, value_name = "N", default_value_t = 4)]
    long_window_every: usize,
    /// Tokens of a step
    #[arg(long, value_name = "N", default_value_t = 4096)]
    step_tokens: usize,
    /// Steps
    #[arg(long, value_name = "N", default_value_t = 1200)]
    steps: usize,
    /// Peak learning rate
    #[arg(long, value_name = "RATE", default_value_t = 2e-3)]
    rate: f64,
    /// Steps of the warm-up; 4% of the steps if not given
    #[arg(long, value_name = "N")]
    warmup: Option<usize>,
    /// Weight decay of matrices
    #[arg(long, value_name = "DECAY", default_value_t = 0.05)]
    weight_decay: f64,
    /// Seed of weights and windows
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    seed: u64,
    /// Steps between lines of metrics
    #[arg(long, value_name = "N", default_value_t = 10)]
    log_every: usize,
    /// Steps between measurements on the held-out text
    #[arg(long, value_name = "N", default_value_t = 100)]
    eval_every: usize,
    /// Steps between checkpoints
    #[arg(long, value_name = "N", default_value_t = 100)]
    save_every: usize,
}

impl PretrainArgs {
    fn settings(&self) -> PretrainSettings {
        PretrainSettings {
            shape: Shape {
                hidden_size: self.hidden,
                layers: self.layers,
                q_heads: self.heads,
                kv_heads: self.kv_heads,
                head_dim: self.head_dim,
                intermediate_size: self.intermediate,
                context_len: self.context,
                ..Shape::default()
            },
            vocab_size: self.vocab,
            window: self.window,
            step_tokens: self.step_tokens,
            long_window_every: self.long_window_every,
            adam: AdamSettings { weight_decay: self.weight_decay, ..AdamSettings::default() },
            schedule: Schedule {
                peak: self.rate,
                warmup: self.warmup.unwrap_or(self.steps.div_ceil(25)),
                steps: self.steps,
            },
            seed: self.seed,
        }
    }

    /// Runs the command, with lines of progress on standard error.
    ///
    /// # Errors
    /// As [`pretrain`].
    pub fn run(&self) -> Result<()> {
        let paths = Paths { text: self.text.clone(), heldout: self.heldout.clone(), out: self.out.clone() };
        let intervals = Intervals { log: self.log_every, eval: self.eval_every, save: self.save_every };
        pretrain(&paths, &self.settings(), intervals, &Device::Cpu, |event| eprintln!("{}", line(event)))
    }
}

fn line(event: &Event) -> String {
    match *event {
        Event::Begin { step, steps, parameters, vocab_size, tokens, heldout_tokens } => format!(
            "{parameters} parameters, {vocab_size} ids, {tokens} tokens ({heldout_tokens} held out): steps {step} to {steps}"
        ),
        Event::Step { step, loss, rate, gradient_norm, tokens_per_second } => format!(
            "step {step}: loss {loss:.4}, rate {rate:.2e}, gradient {gradient_norm:.3}, {tokens_per_second:.0} tokens/s"
        ),
        Event::Heldout { step, loss } => format!("step {step}: held-out loss {loss:.4}"),
        Event::Saved { step } => format!("step {step}: saved"),
    }
}
