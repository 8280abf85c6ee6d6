//! Error messages and exit codes of the command `flexdraft-tune`.

use std::error::Error;
use std::io;
use std::process::ExitCode;

use flexdraft::decode::DecodeError;
use flexdraft::device::DeviceError;
use flexdraft::model::LoadError;
use flexdraft_tune::TuneError;

/// Returns exit code 2 for errors that the user can fix, and 1 for all others.
pub fn code(error: &TuneError) -> ExitCode {
    ExitCode::from(if is_users(error) { 2 } else { 1 })
}

fn is_users(error: &TuneError) -> bool {
    match error {
        TuneError::File { .. }
        | TuneError::Setting { .. }
        | TuneError::TooLittleData { .. }
        | TuneError::OtherRun { .. } => true,
        TuneError::Io { action, source, .. } => {
            *action == "read" || source.kind() == io::ErrorKind::ResourceBusy
        }
        TuneError::Runner(error) => match error {
            flexdraft::Error::Load(LoadError::OutOfMemory { .. }) => false,
            flexdraft::Error::Load(_) | flexdraft::Error::Sampling(_) => true,
            flexdraft::Error::Device(error) | flexdraft::Error::Decode(DecodeError::Device(error)) => {
                matches!(error, DeviceError::Unavailable { .. })
            }
            flexdraft::Error::Decode(error) => error.is_of_the_request(),
            _ => false,
        },
        _ => false,
    }
}

/// Returns an error's message and its causes, on one line.
pub fn one_line(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        // The messages of some errors already end with the text of their cause.
        if !line.ends_with(&text) {
            line = format!("{line}: {text}");
        }
        cause = error.source();
    }
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_named_once_and_on_one_line() {
        let source = io::Error::new(io::ErrorKind::NotFound, "no such\nfile");
        let error = TuneError::io("read", "p.txt")(source);
        assert_eq!(one_line(&error), "cannot read p.txt: no such file");
    }

    #[test]
    fn exit_codes() {
        let io = |action, kind: io::ErrorKind| TuneError::io(action, "p")(kind.into());
        assert!(is_users(&io("read", io::ErrorKind::NotFound)));
        assert!(is_users(&io("write", io::ErrorKind::ResourceBusy)));
        assert!(!is_users(&io("write", io::ErrorKind::StorageFull)));
        assert!(is_users(&TuneError::setting("the window", 0, "more")));
        assert!(is_users(&TuneError::from(DecodeError::EmptyPrompt)));
        let memory = DeviceError::OutOfMemory { what: "the KV cache", bytes: 1 };
        assert!(!is_users(&TuneError::from(DecodeError::from(memory))));
        assert!(!is_users(&TuneError::NotFinite { step: 1, loss: f64::NAN, checkpoint: 0 }));
    }
}
