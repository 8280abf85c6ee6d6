//! Errors that end the command `flexdraft`, and their exit codes.

use std::error::Error as _;
use std::fmt;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anstyle::{AnsiColor, Style};
use flexdraft::decode::DecodeError;
use flexdraft::device::DeviceError;
use flexdraft::model::LoadError;

/// Writes a warning to stderr.
pub fn warn(text: &str) -> io::Result<()> {
    let style = Style::new().fg_color(Some(AnsiColor::Yellow.into()));
    writeln!(anstream::stderr(), "{style}warning:{style:#} {text}")
}

/// A failure of the command.
#[derive(Debug)]
pub enum CliError {
    /// The library refused a request or failed.
    Library(flexdraft::Error),
    /// An invalid request that the library cannot detect.
    Usage(String),
    /// A model some of whose weights are NaN or infinite.
    NotFinite(String),
    /// A file that an argument names and that could not be read; `what` is the file's purpose.
    ArgumentFile { what: &'static str, path: PathBuf, source: io::Error },
    /// A failure to read from standard input.
    Input(io::Error),
    /// A failure to write to standard output.
    Output(io::Error),
    /// A model that could not be downloaded.
    Download(String),
    /// Two modes gave different tokens although the acceptance rule guarantees the same tokens.
    NotLossless(String),
    /// An internal error: a panic, with its message.
    Internal(String),
}

/// A [`Result`](std::result::Result) with a [`CliError`].
pub type Result<T, E = CliError> = std::result::Result<T, E>;

impl CliError {
    /// Returns whether the reader of stdout closed it, which is not an error.
    pub fn is_closed_pipe(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }

    /// Returns exit code 2 for errors that the user can fix, and 1 for all others.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(if self.is_users() { 2 } else { 1 })
    }

    /// Returns whether a device ran out of memory.
    pub fn is_out_of_memory(&self) -> bool {
        match self {
            Self::Library(flexdraft::Error::Device(error)) => error.is_out_of_memory(),
            _ => false,
        }
    }

    fn is_users(&self) -> bool {
        match self {
            Self::Usage(_) | Self::ArgumentFile { .. } => true,
            Self::NotFinite(_)
            | Self::Download(_)
            | Self::Input(_)
            | Self::Output(_)
            | Self::NotLossless(_)
            | Self::Internal(_) => false,
            Self::Library(error) => match error {
                flexdraft::Error::Load(LoadError::OutOfMemory { .. }) => false,
                flexdraft::Error::Load(_) | flexdraft::Error::Sampling(_) => true,
                flexdraft::Error::Device(error) | flexdraft::Error::Decode(DecodeError::Device(error)) => {
                    matches!(error, DeviceError::Unavailable { .. })
                }
                flexdraft::Error::Decode(error) => error.is_of_the_request(),
                _ => false,
            },
        }
    }

    /// Returns an error's message and its causes, on one line.
    pub fn one_line(&self) -> String {
        let mut line = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            let text = error.to_string();
            // Some messages already end with the text of their cause.
            if !line.ends_with(&text) {
                line = format!("{line}: {text}");
            }
            cause = error.source();
        }
        line.split_whitespace().collect::<Vec<_>>().join(" ")
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Library(error) => error.fmt(f),
            Self::Usage(message) | Self::Download(message) | Self::NotFinite(message) => f.write_str(message),
            Self::ArgumentFile { what, path, source } => {
                write!(f, "cannot read {what} {}: {source}", path.display())
            }
            Self::Input(error) => write!(f, "cannot read from stdin: {error}"),
            Self::Output(error) => write!(f, "cannot write to stdout: {error}"),
            Self::NotLossless(difference) => write!(f, "NOT LOSSLESS: {difference}"),
            Self::Internal(message) => write!(f, "internal error, please report it: {message}"),
        }
    }
}

impl std::error::Error for CliError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Library(error) => error.source(),
            Self::ArgumentFile { source, .. } | Self::Input(source) | Self::Output(source) => Some(source),
            Self::Usage(_)
            | Self::NotFinite(_)
            | Self::Download(_)
            | Self::NotLossless(_)
            | Self::Internal(_) => None,
        }
    }
}

impl<E: Into<flexdraft::Error>> From<E> for CliError {
    fn from(error: E) -> Self {
        Self::Library(error.into())
    }
}

#[cfg(test)]
mod tests {
    use flexdraft::logits::LogitsFault;

    use super::*;

    #[test]
    fn a_cause_is_named_once() {
        let missing = || io::Error::new(io::ErrorKind::NotFound, "no such\nfile");
        let error = CliError::ArgumentFile { what: "prompt", path: "p.txt".into(), source: missing() };
        assert_eq!(error.one_line(), "cannot read prompt p.txt: no such file");
        let error = CliError::from(LoadError::Io { path: "config.json".into(), source: missing() });
        assert_eq!(error.one_line(), "cannot read config.json: no such file");
        assert_eq!(error.exit_code(), ExitCode::from(2));
    }

    #[test]
    fn exit_codes() {
        let unavailable = DeviceError::Unavailable { requested: "cuda:0".into(), reason: "none".into() };
        assert_eq!(CliError::from(unavailable).exit_code(), ExitCode::from(2));
        let memory = DeviceError::OutOfMemory { what: "the KV cache", bytes: 1 };
        assert_eq!(CliError::from(DecodeError::from(memory)).exit_code(), ExitCode::from(1));
        assert_eq!(CliError::from(DecodeError::EmptyPrompt).exit_code(), ExitCode::from(2));
        let faulty = DecodeError::Logits { position: 3, fault: LogitsFault::Nan };
        assert_eq!(CliError::from(faulty).exit_code(), ExitCode::from(1));
        assert!(CliError::Output(io::ErrorKind::BrokenPipe.into()).is_closed_pipe());
    }
}
