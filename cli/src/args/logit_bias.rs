//! The argument type for the bias of a token id.

use std::str::FromStr;

/// A token id, and the number that is added to its logit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LogitBias {
    pub id: u32,
    pub bias: f32,
}

impl FromStr for LogitBias {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || format!("expected ID=NUMBER, found `{text}`");
        let (id, bias) = text.split_once('=').ok_or_else(expected)?;
        let id = id.trim().parse().map_err(|_| expected())?;
        Ok(Self { id, bias: bias.trim().parse().map_err(|_| expected())? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_and_a_number() {
        assert_eq!("5=-1.5".parse(), Ok(LogitBias { id: 5, bias: -1.5 }));
        for text in ["5", "5=", "=1", "x=1", "5=1=2", "-5=1"] {
            let error = text.parse::<LogitBias>().unwrap_err();
            assert_eq!(error, format!("expected ID=NUMBER, found `{text}`"));
        }
    }
}
