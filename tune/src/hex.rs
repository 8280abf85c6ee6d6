//! Hexadecimal text for bytes that one process hands to another.

/// Writes two lower-case hexadecimal digits per byte.
pub fn encode(bytes: impl IntoIterator<Item = u8>) -> String {
    bytes.into_iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Reads the `N` bytes that [`encode`] wrote; returns `None` for any other text. Upper-case digits are accepted.
pub fn decode<const N: usize>(text: &str) -> Option<[u8; N]> {
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return None };
    let digit = |digit: u8| char::from(digit).to_digit(16).map(|digit| digit as u8);
    let byte = |[high, low]: &[u8; 2]| Some(digit(*high)? << 4 | digit(*low)?);
    let bytes: Vec<u8> = pairs.iter().map(byte).collect::<Option<_>>()?;
    bytes.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_comes_back() {
        let bytes: [u8; 256] = std::array::from_fn(|i| i as u8);
        assert_eq!(decode(&encode(bytes)), Some(bytes));
        assert_eq!(encode([0, 10, 0xff]), "000aff");
        assert_eq!(decode("0A0f"), Some([10, 15]));
    }

    #[test]
    fn other_texts_are_not_read() {
        // Texts that are no hexadecimal bytes: a wrong length, half a byte, text that integer parsers accept, and text
        // that is not ASCII.
        for text in ["", "00", "000000", "000", "+f00", "0g00", " 000", "é00", "٠٠"] {
            assert_eq!(decode::<2>(text), None, "{text}");
        }
        assert_eq!(decode::<0>(""), Some([]));
    }
}
