//! Numbers as people read them: rates, bytes, times and shares, each short enough for a column.

use indicatif::BinaryBytes;

/// How often something happens in a second.
pub(super) fn rate(per_second: f64) -> String {
    match per_second {
        0.0 => "0".to_owned(),
        ..0.01 => "<0.01".to_owned(),
        ..1.0 => format!("{per_second:.2}"),
        ..9.95 => format!("{per_second:.1}"),
        ..9999.5 => format!("{per_second:.0}"),
        ..999_950.0 => format!("{:.1}k", per_second / 1e3),
        _ => format!("{:.1}M", per_second / 1e6),
    }
}

/// A number of bytes.
pub(super) fn bytes(bytes: f64) -> String {
    BinaryBytes(bytes.max(0.0) as u64).to_string()
}

/// A share of a whole.
pub(super) fn share(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

/// A time.
pub(super) fn time(seconds: f64) -> String {
    let whole = seconds.max(0.0) as u64;
    match seconds {
        ..0.000_009_95 => format!("{:.1} µs", seconds * 1e6),
        ..0.000_999_5 => format!("{:.0} µs", seconds * 1e6),
        ..0.009_95 => format!("{:.1} ms", seconds * 1e3),
        ..0.999_5 => format!("{:.0} ms", seconds * 1e3),
        ..9.95 => format!("{seconds:.1} s"),
        ..100.0 => format!("{seconds:.0} s"),
        ..3600.0 => format!("{} min {} s", whole / 60, whole % 60),
        ..86_400.0 => format!("{} h {} min", whole / 3600, whole / 60 % 60),
        _ => format!("{} d {} h", whole / 86_400, whole / 3600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let rates = [0.0, 0.001, 0.25, 1.0, 9.96, 123.4, 9999.4, 12_345.0, 1_234_567.0].map(rate);
        let expected = ["0", "<0.01", "0.25", "1.0", "10", "123", "9999", "12.3k", "1.2M"];
        assert_eq!(rates, expected);
        let times =
            [0.0, 0.000_012, 0.001_25, 0.25, 1.25, 61.0, 125.0, 7384.0, 200_000.0].map(time);
        let expected = [
            "0.0 µs",
            "12 µs",
            "1.2 ms",
            "250 ms",
            "1.2 s",
            "61 s",
            "2 min 5 s",
            "2 h 3 min",
            "2 d 7 h",
        ];
        assert_eq!(times, expected);
        assert_eq!((bytes(1536.0), bytes(-1.0)), ("1.50 KiB".to_owned(), "0 B".to_owned()));
        assert_eq!(share(0.75), "75.0 %");
    }
}
