//! The command `flexdraft-tune show`, which prints transcripts as text.

use std::io::{self, Write};

use flexdraft::model::Tokenizer;
use flexdraft_tune::{Result, TuneError, transcripts};

use super::args::ShowArgs;

/// Prints the transcripts of a file as text.
pub fn show(args: &ShowArgs) -> Result<()> {
    let tokenizer = Tokenizer::read(&args.target, usize::MAX)?;
    let transcripts = transcripts::read(&args.transcripts, usize::MAX)?;
    let mut out = io::stdout().lock();
    for transcript in transcripts.iter().skip(args.skip).take(args.count) {
        let prompt = tokenizer.decode(&transcript.prompt, false)?;
        let response = tokenizer.decode(&transcript.response, false)?;
        match writeln!(out, "{prompt}▶{response}\n{}", "─".repeat(40)) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            written => written.map_err(TuneError::io("write", "stdout"))?,
        }
    }
    Ok(())
}
