//! Nix's base 32: an alphabet without `e`, `o`, `t` and `u`, its digits taken from the end of the
//! byte string, five bits each.

const ALPHABET: &[u8; 32] = b"0123456789abcdfghijklmnpqrsvwxyz";

/// The text of some bytes: 32 characters for 20 bytes, 52 for 32.
pub fn encode(bytes: &[u8]) -> String {
    let digits = (bytes.len() * 8).div_ceil(5);
    let digit = |index: usize| {
        let (byte, shift) = (index * 5 / 8, index * 5 % 8);
        let low = u16::from(bytes[byte]) | u16::from(*bytes.get(byte + 1).unwrap_or(&0)) << 8;
        char::from(ALPHABET[usize::from(low >> shift & 31)])
    };
    (0..digits).rev().map(digit).collect()
}

/// The `N` bytes of a text; `None` if the text is not that of any `N` bytes.
pub fn decode<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    if text.len() != (N * 8).div_ceil(5) {
        return None;
    }
    let mut bytes = [0; N];
    for (index, character) in text.iter().rev().enumerate() {
        let digit = ALPHABET.iter().position(|letter| letter == character)?;
        let (byte, shift) = (index * 5 / 8, index * 5 % 8);
        let [low, high] = u16::to_le_bytes((digit as u16) << shift);
        bytes[byte] |= low;
        match bytes.get_mut(byte + 1) {
            Some(next) => *next |= high,
            None if high != 0 => return None,
            None => {}
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn texts_are_those_of_nix() {
        assert_eq!(encode(&[0; 20]), "0".repeat(32));
        let text = "y0lrmcm4zaj0qd44rp7mg83dgyl87lkp";
        assert_eq!(encode(&decode::<20>(text.as_bytes()).unwrap()), text);
        // `nix-hash --type sha256 --to-base32` of the hash of nothing.
        let empty = [
            0xe3, 0xb0, 0xc4, 0x42, 0x98, 0xfc, 0x1c, 0x14, 0x9a, 0xfb, 0xf4, 0xc8, 0x99, 0x6f,
            0xb9, 0x24, 0x27, 0xae, 0x41, 0xe4, 0x64, 0x9b, 0x93, 0x4c, 0xa4, 0x95, 0x99, 0x1b,
            0x78, 0x52, 0xb8, 0x55,
        ];
        assert_eq!(encode(&empty), "0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73");
    }

    #[test]
    fn what_no_bytes_have_is_refused() {
        assert_eq!(decode::<20>(b"y0lrmcm4zaj0qd44rp7mg83dgyl87lk"), None);
        assert_eq!(decode::<20>(b"e0lrmcm4zaj0qd44rp7mg83dgyl87lkp"), None);
        // 52 digits carry four bits more than 32 bytes.
        assert_eq!(decode::<32>("z".repeat(52).as_bytes()), None);
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_read_back(short: [u8; 20], long: [u8; 32]) {
            prop_assert_eq!(decode(encode(&short).as_bytes()), Some(short));
            prop_assert_eq!(decode(encode(&long).as_bytes()), Some(long));
        }
    }
}
