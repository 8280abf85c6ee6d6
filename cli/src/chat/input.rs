//! The user's input, line by line.

use std::io::{self, BufRead, ErrorKind, IsTerminal, Write};

use super::interrupt;

/// Maximum size of an input line in bytes: more text than any context holds.
const LINE_LIMIT: usize = 64 << 20;

/// The user's input.
#[derive(Debug, PartialEq, Eq)]
pub enum Input {
    /// A line, without the line break and without spaces around it.
    Line(String),
    /// Ctrl-C while the program waited for input.
    Interrupt,
    /// The end of the input.
    End,
}

/// Reads the user's next line. On a terminal, a prompt shows that the program waits for it.
pub fn next(show_prompt: bool) -> io::Result<Input> {
    if show_prompt {
        let mut stderr = anstream::stderr();
        write!(stderr, "> ").and_then(|()| stderr.flush())?;
    }
    read_line(&mut io::stdin().lock())
}

/// Returns whether input comes from a terminal, so that prompts and hints are of use.
pub fn is_terminal() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

fn read_line(input: &mut impl BufRead) -> io::Result<Input> {
    let mut line = Vec::new();
    loop {
        let bytes = match input.fill_buf() {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::Interrupted => match interrupt::take_interrupt() {
                true => return Ok(Input::Interrupt),
                false => continue,
            },
            Err(error) => return Err(error),
        };
        let end = bytes.iter().position(|&byte| byte == b'\n');
        line.extend_from_slice(&bytes[..end.unwrap_or(bytes.len())]);
        let taken = end.map_or(bytes.len(), |end| end + 1);
        let ended = taken == 0;
        input.consume(taken);
        if line.len() > LINE_LIMIT {
            return Err(io::Error::new(
                ErrorKind::InvalidData,
                format!("a line has more than {LINE_LIMIT} bytes"),
            ));
        }
        if ended && line.is_empty() {
            return Ok(Input::End);
        }
        if ended || end.is_some() {
            return Ok(Input::Line(String::from_utf8_lossy(&line).trim().to_owned()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_the_end() {
        let mut input = io::BufReader::with_capacity(3, " caf\u{e9} au lait\r\n\nend".as_bytes());
        let line = |text: &str| Input::Line(text.into());
        for expected in [line("caf\u{e9} au lait"), line(""), line("end"), Input::End] {
            assert_eq!(read_line(&mut input).unwrap(), expected);
        }
    }
}
