//! The command `flexdraft-tune pretrain`, which makes a small target.

use candle_core::Device;
use flexdraft_tune::Result;
use flexdraft_tune::pretrain::{self, Event, Paths, PretrainSettings};

use super::args::PretrainArgs;
use super::progress::Progress;
use super::training::settings_file;
use super::training_args::take;

/// Makes a small target from the text that the arguments name.
pub fn pretrain(args: &PretrainArgs) -> Result<()> {
    let settings = settings(args)?;
    let paths = Paths { text: args.text.clone(), heldout: args.heldout.clone(), out: args.out.clone() };
    let mut progress = Progress::new(settings.steps);
    let (mut first, mut heldout) = (0, None);
    pretrain::pretrain(&paths, &settings, &Device::Cpu, |event| match *event {
        Event::Begin { step, parameters, vocab_size, tokens, heldout_tokens, .. } => {
            first = step;
            eprintln!(
                "{parameters} parameters, {vocab_size} ids; {tokens} tokens to learn, {heldout_tokens} held out"
            );
        }
        Event::Step { step, loss, tokens_per_second, .. } => {
            let heldout = heldout.map_or_else(String::new, |loss: f64| format!(", held out {loss:.3}"));
            progress.show(step, first, &format!("loss {loss:.3}{heldout}, {tokens_per_second:.0} tokens/s"));
        }
        Event::Heldout { loss, .. } => heldout = Some(loss),
        Event::Saved { .. } => {}
    })?;
    progress.finish();
    if let Some(loss) = heldout {
        eprintln!("held-out loss {loss:.3}, after {} steps: {}", settings.steps, args.out.display());
    }
    Ok(())
}

/// Returns the settings of --config, or else the defaults, overridden by the command line.
fn settings(args: &PretrainArgs) -> Result<PretrainSettings> {
    let mut settings: PretrainSettings = settings_file(args.config.as_deref())?;
    take!(args => settings; vocab_size, steps, step_tokens, window, long_window_every, learning_rate, seed);
    take!(args => settings; evaluate_every, checkpoint_every);
    take!(args => settings.shape; hidden_size, layers, q_heads, kv_heads, head_dim, intermediate_size, context_len);
    Ok(settings)
}
