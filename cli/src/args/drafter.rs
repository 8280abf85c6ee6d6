//! The argument that names the source of a drafter.

use std::path::PathBuf;
use std::str::FromStr;

/// The source of drafts: a drafter in a directory, a random drafter, or a lookup in the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DrafterSource {
    Directory(PathBuf),
    Random {
        layers: usize,
    },
    /// No drafter: the tokens that followed an earlier occurrence of the text's last tokens.
    Lookup,
}

impl FromStr for DrafterSource {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "lookup" {
            return Ok(Self::Lookup);
        }
        match text.strip_prefix("random:") {
            None => Ok(Self::Directory(text.into())),
            Some(layers) => match layers.parse() {
                Ok(layers) => Ok(Self::Random { layers }),
                Err(_) => Err(format!("expected a number of layers after `random:`, found `{layers}`")),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drafters() {
        assert_eq!("random:3".parse(), Ok(DrafterSource::Random { layers: 3 }));
        assert_eq!("random".parse(), Ok(DrafterSource::Directory("random".into())));
        assert_eq!("lookup".parse(), Ok(DrafterSource::Lookup));
        assert_eq!("./lookup".parse(), Ok(DrafterSource::Directory("./lookup".into())));
        assert!("random:x".parse::<DrafterSource>().is_err());
    }
}
