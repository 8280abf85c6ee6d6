//! The default values in the help of options that are settings.

use clap::{Arg, Command, CommandFactory};
use flexdraft_tune::pretrain::PretrainSettings;
use flexdraft_tune::tune::{ChainChoice, ChainSettings, Settings};
use serde::Serialize;
use serde_json::{Value, json};

use super::args::Cli;

/// Returns the command line, whose help says the default value of each option that is a setting.
pub fn command() -> Command {
    Cli::command().mut_subcommands(|command| {
        let settings = settings_of(command.get_name());
        command.mut_args(|arg| with_default(arg, &settings))
    })
}

/// Returns the default settings of a command, in objects whose keys are the ids of options.
fn settings_of(command: &str) -> Vec<Value> {
    fn value(settings: &impl Serialize) -> Value {
        serde_json::to_value(settings).unwrap_or_default()
    }
    match command {
        "tune" => {
            let ChainChoice { rank, top_k, .. } = ChainChoice::default();
            vec![value(&Settings::default()), json!({ "chain_rank": rank, "chain_top_k": top_k })]
        }
        "chain" => vec![value(&ChainSettings::default())],
        "pretrain" => {
            let settings = PretrainSettings::default();
            vec![value(&settings), value(&settings.shape)]
        }
        _ => Vec::new(),
    }
}

/// Adds the default of the option's setting to its help. If a setting has no default value, the help text itself
/// describes the behaviour without the option.
fn with_default(arg: Arg, settings: &[Value]) -> Arg {
    let id = arg.get_id().as_str();
    let value = match settings.iter().find_map(|settings| settings.get(id)) {
        Some(Value::String(text)) => text.clone(),
        Some(value @ (Value::Number(_) | Value::Bool(_))) => value.to_string(),
        _ => return arg,
    };
    let value = value.strip_suffix(".0").unwrap_or(&value);
    let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
    arg.help(format!("{help} [default: {value}]"))
}

#[cfg(test)]
mod tests {
    use super::command;

    /// Returns the help of an option.
    fn help(name: &str, option: &str) -> String {
        let cli = command();
        let command = cli.find_subcommand(name).unwrap();
        let option = command.get_arguments().find(|argument| argument.get_long() == Some(option)).unwrap();
        assert!(option.get_long_help().is_none(), "{option}");
        option.get_help().unwrap().to_string()
    }

    #[test]
    fn the_help_shows_the_defaults_of_settings() {
        for (name, option, default) in [
            ("tune", "steps", "1000"),
            ("tune", "kind", "flexdraft"),
            ("tune", "whole-tail", "false"),
            ("tune", "calibrator-rate", "1"),
            ("tune", "learning-rate", "0.0006"),
            ("tune", "mask-token", "the last id"),
            ("tune", "chain", "none"),
            ("tune", "chain-rank", "256"),
            ("tune", "chain-top-k", "16"),
            ("chain", "steps", "2000"),
            ("chain", "kind", "pair"),
            ("chain", "learning-rate", "0.002"),
            ("pretrain", "vocab-size", "2048"),
            ("pretrain", "hidden-size", "256"),
        ] {
            let help = help(name, option);
            assert!(help.ends_with(&format!(" [default: {default}]")), "{name} --{option}: {help}");
            assert_eq!(help.matches("[default").count(), 1, "{name} --{option}: {help}");
        }
    }

    /// The help of every option of `tune`, `chain` and `pretrain` states the behaviour without the option.
    #[test]
    fn no_option_lacks_its_default() {
        let cli = command();
        for name in ["tune", "chain", "pretrain"] {
            let command = cli.find_subcommand(name).unwrap();
            let optional = command.get_arguments().filter(|argument| {
                let own = argument.get_id() == "help" || argument.get_id() == "gpus";
                !argument.is_required_set() && argument.get_default_values().is_empty() && !own
            });
            for option in optional {
                let help = option.get_help().unwrap().to_string();
                assert_eq!(help.matches("[default: ").count(), 1, "{name} {option}: {help}");
            }
        }
    }
}
