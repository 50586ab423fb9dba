//! Numbers of bytes as people write them on a command line.

use std::{fmt, str::FromStr};

/// A number of bytes, written as a number with or without a unit: `20GiB`, `1.5T`, `500MB`.
///
/// Units with an `i`, and those of a single letter, are powers of 1024, the others powers of 1000.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

/// A text that is no number of bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidByteSize {
    /// Not a number with a known unit.
    #[error("{0:?} is no size: write a number with a unit, as in 20GiB")]
    Syntax(String),
    /// More than 64 bits.
    #[error("{0:?} is more than can be counted")]
    TooLarge(String),
}

/// The prefixes of units, each 1000 or 1024 times the one before.
const PREFIXES: [char; 6] = ['k', 'm', 'g', 't', 'p', 'e'];

impl FromStr for ByteSize {
    type Err = InvalidByteSize;

    fn from_str(text: &str) -> Result<Self, InvalidByteSize> {
        let invalid = || InvalidByteSize::Syntax(text.to_owned());
        let trimmed = text.trim();
        let is_of_number = |c: char| c.is_ascii_digit() || c == '.';
        let unit_at = trimmed.find(|c| !is_of_number(c)).unwrap_or(trimmed.len());
        let (number, unit) = trimmed.split_at(unit_at);
        let unit = unit.trim_start().to_ascii_lowercase();
        let factor: u64 = match unit.as_str() {
            "" | "b" => 1,
            unit => {
                let (prefix, rest) = unit.split_at_checked(1).ok_or_else(invalid)?;
                let power = PREFIXES.iter().position(|known| prefix.starts_with(*known));
                let power = power.ok_or_else(invalid)? as u32 + 1;
                match rest {
                    "" | "i" | "ib" => 1024_u64.pow(power),
                    "b" => 1000_u64.pow(power),
                    _ => return Err(invalid()),
                }
            }
        };
        let is_whole = !number.is_empty() && !number.contains('.');
        let bytes = if is_whole {
            number.parse().ok().and_then(|number: u64| number.checked_mul(factor))
        } else {
            let bytes = number.parse::<f64>().map_err(|_| invalid())? * factor as f64;
            (bytes < u64::MAX as f64).then_some(bytes as u64)
        };
        bytes.map(Self).ok_or_else(|| InvalidByteSize::TooLarge(text.to_owned()))
    }
}

/// In the largest unit of 1024 that leaves no fraction.
impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut number, mut unit) = (self.0, String::new());
        for prefix in PREFIXES {
            if number == 0 || number % 1024 != 0 {
                break;
            }
            number /= 1024;
            unit = format!("{}iB", prefix.to_ascii_uppercase());
        }
        write!(f, "{number}{unit}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(text: &str) -> Option<u64> {
        text.parse().ok().map(|ByteSize(bytes)| bytes)
    }

    #[test]
    fn sizes_are_read() {
        assert_eq!(bytes("0"), Some(0));
        assert_eq!(bytes("512"), Some(512));
        assert_eq!(bytes("512B"), Some(512));
        assert_eq!(bytes("20GiB"), Some(20 << 30));
        assert_eq!(bytes("20 GiB"), Some(20 << 30));
        assert_eq!(bytes("20g"), Some(20 << 30));
        assert_eq!(bytes("1.5K"), Some(1536));
        assert_eq!(bytes("500MB"), Some(500_000_000));
        assert_eq!(bytes("2t"), Some(2 << 40));
    }

    #[test]
    fn other_texts_are_refused() {
        for text in ["", "GiB", "-1", "1x", "1kk", "1..2", "1 k b", "1e3", "ü", "1ü", "99999P"] {
            assert_eq!(bytes(text), None, "{text}");
        }
    }

    #[test]
    fn sizes_are_written_as_they_are_read() {
        let most = u64::MAX.to_string();
        for text in ["0", "1", "1023", "1KiB", "1025", "20GiB", "1536MiB", most.as_str()] {
            assert_eq!(text.parse::<ByteSize>().unwrap().to_string(), text);
        }
    }
}
