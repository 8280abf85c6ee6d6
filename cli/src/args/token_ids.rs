//! The argument type for comma-separated token ids.

use std::str::FromStr;

/// A list of token ids, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenIds(pub Vec<u32>);

impl FromStr for TokenIds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.trim().is_empty() {
            return Ok(Self(Vec::new()));
        }
        let id = |id: &str| {
            id.trim().parse().map_err(|_| format!("expected token ids separated by commas, found `{id}`"))
        };
        text.split(',').map(id).collect::<Result<_, _>>().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids() {
        assert_eq!("1, 2,3".parse(), Ok(TokenIds(vec![1, 2, 3])));
        assert_eq!("".parse(), Ok(TokenIds(vec![])));
        assert!("1,,2".parse::<TokenIds>().is_err());
    }
}
