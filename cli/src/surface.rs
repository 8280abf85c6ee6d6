//! Stdout as a terminal, with or without colours, or as a file.

use std::io::{self, IsTerminal, Write};

use anstyle::Style;

/// The kind of output that the text is written to: a terminal, or a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Surface {
    /// A terminal, with or without colours; control characters are made visible.
    Terminal { colours: bool },
    /// A file or a pipe; the text is written unchanged.
    File,
}

impl Surface {
    /// Returns the kind of stdout, from whether it is a terminal and from the usual environment variables.
    pub fn of_stdout() -> Self {
        let stdout = io::stdout();
        let colours = anstream::AutoStream::choice(&stdout) != anstream::ColorChoice::Never;
        if colours || stdout.is_terminal() { Self::Terminal { colours } } else { Self::File }
    }

    /// Returns stdout, configured for the output that [`Streamer`] writes.
    pub fn stdout(self) -> Box<dyn Write> {
        if self.has_colours() { Box::new(anstream::stdout()) } else { Box::new(io::stdout().lock()) }
    }

    pub fn has_colours(self) -> bool {
        self == Self::Terminal { colours: true }
    }

    /// Appends `text` to `out`, in the form that a terminal or a file needs.
    pub fn render(self, text: &str, style: Style, out: &mut String) {
        let Self::Terminal { colours } = self else {
            out.push_str(text);
            return;
        };
        for line in text.split_inclusive('\n') {
            let (line, end) = line.strip_suffix('\n').map_or((line, ""), |line| (line, "\n"));
            if !line.is_empty() && colours {
                // On some terminals, a style that spans lines would colour the rest of the line.
                out.push_str(&style.render().to_string());
            }
            for (i, part) in line.split('\t').enumerate() {
                out.push_str(if i > 0 { "\t" } else { "" });
                out.push_str(&visible(part));
            }
            if !line.is_empty() && colours {
                out.push_str(&style.render_reset().to_string());
            }
            out.push_str(end);
        }
    }
}

/// Replaces control characters in `text` by visible forms, so that none of them reaches a terminal.
pub fn visible(text: &str) -> String {
    let spelled = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    text.chars().map(spelled).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rendered(surface: Surface, text: &str) -> String {
        let mut out = String::new();
        surface.render(text, Style::new(), &mut out);
        out
    }

    #[test]
    fn a_file_holds_the_text_and_a_terminal_no_control_characters() {
        let text = "a\tb\n\x1b[2J";
        assert_eq!(rendered(Surface::File, text), text);
        assert_eq!(rendered(Surface::Terminal { colours: false }, text), "a\tb\n\\u{1b}[2J");
    }
}
