//! Prints the result of a command to stdout.

use std::fmt::Display;
use std::io::{self, Write};

use flexdraft_tune::{Result, TuneError};
use serde::Serialize;

/// Prints a report as a table, or as one JSON object.
pub fn print(report: &(impl Display + Serialize), json: bool) -> Result<()> {
    let text = match json {
        true => serde_json::to_string(report).map(|json| json + "\n").map_err(io::Error::from),
        false => Ok(report.to_string()),
    };
    match text.and_then(|text| io::stdout().write_all(text.as_bytes())) {
        // The reader has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.map_err(TuneError::io("write", "stdout")),
    }
}
