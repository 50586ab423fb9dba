//! Numbers of bytes as people write them on a command line.

use std::{fmt, str::FromStr};

/// A number of bytes, written as a number with or without a unit: `20GiB`, `1.5T`, `500MB`.
///
/// Units with an `i`, and those of a single letter, are powers of 1024, the others powers of 1000.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ByteSize(pub(crate) u64);

/// The prefixes of units, each 1000 or 1024 times the one before.
const PREFIXES: [char; 6] = ['k', 'm', 'g', 't', 'p', 'e'];

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let invalid = || format!("{text:?} is no size: write a number with a unit, as in 20GiB");
        let text = text.trim();
        let unit_at = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(unit_at);
        let number: f64 = number.parse().map_err(|_| invalid())?;
        let unit = unit.trim_start().to_ascii_lowercase();
        let factor = match unit.as_str() {
            "" | "b" => 1.0,
            unit => {
                let (prefix, rest) = unit.split_at_checked(1).ok_or_else(invalid)?;
                let power = PREFIXES.iter().position(|known| prefix.starts_with(*known));
                let power = power.ok_or_else(invalid)? as i32 + 1;
                match rest {
                    "" | "i" | "ib" => 1024_f64.powi(power),
                    "b" => 1000_f64.powi(power),
                    _ => return Err(invalid()),
                }
            }
        };
        let bytes = number * factor;
        if bytes >= u64::MAX as f64 {
            return Err(format!("{text:?} is more than can be counted"));
        }
        Ok(Self(bytes as u64))
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
        for text in ["0", "1", "1023", "1KiB", "1025", "20GiB", "1536MiB"] {
            assert_eq!(text.parse::<ByteSize>().unwrap().to_string(), text);
        }
    }
}
