//! Values as people write them: durations, sizes, ratios, headers. Text in, value or a sentence out.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use gotrace_agent::pipeline::Slow;
use gotrace_model::Level;

/// An address and a port, or a port of loopback: `127.0.0.1:9465`, `9465`.
pub(crate) fn address(text: &str) -> Result<SocketAddr, String> {
    let of_loopback = |port: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let address = text.parse().ok().or_else(|| text.parse().ok().map(of_loopback));
    address.ok_or_else(|| "expected an address and a port, such as 127.0.0.1:9465, or a port".into())
}

/// `10s`, `2m`, `1h30m`, `1.5s`, `500us`; a bare number is refused but for `0`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    const EXPECTED: &str = "expected a number with a unit, such as 500us, 1ms, 10s, 2m or 1h30m";
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut total = Duration::ZERO;
    let mut rest = text;
    if rest.is_empty() {
        return Err(EXPECTED.into());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, behind) = rest.split_at(digits);
        let unit_end = behind.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(behind.len());
        let (unit, behind) = behind.split_at(unit_end);
        let unit_ns: f64 = match unit {
            "ns" => 1.0,
            "us" | "µs" | "μs" => 1e3,
            "ms" => 1e6,
            "s" => 1e9,
            "m" | "min" => 60e9,
            "h" => 3600e9,
            "d" => 86400e9,
            "" => return Err(format!("`{text}` has no unit: {EXPECTED}")),
            other => return Err(format!("`{other}` is not a unit of time: {EXPECTED}")),
        };
        let number: f64 = number.parse().map_err(|_| format!("`{text}` is not a duration: {EXPECTED}"))?;
        let part = Duration::try_from_secs_f64(number * unit_ns / 1e9).ok();
        total = part
            .and_then(|p| total.checked_add(p))
            .filter(|t| *t <= Duration::from_secs(366 * 86400))
            .ok_or_else(|| format!("`{text}` is longer than a year"))?;
        rest = behind;
    }
    Ok(total)
}

/// From when on a request is slow: `auto`, or a time.
pub(crate) fn slow(text: &str) -> Result<Slow, String> {
    if text == "auto" { Ok(Slow::Auto) } else { duration(text).map(Slow::From) }
}

pub(crate) fn duration_above_zero(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("must be longer than 0".into()),
        d => Ok(d),
    }
}

/// Below 100 ms a report costs more than it tells.
pub(crate) fn interval(text: &str) -> Result<Duration, String> {
    let interval = duration(text)?;
    if interval < Duration::from_millis(100) || interval > Duration::from_secs(3600) {
        return Err("must be from 100ms to 1h".into());
    }
    Ok(interval)
}

pub(crate) fn level(text: &str) -> Result<Level, String> {
    text.parse()
}

pub(crate) fn ratio(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(ratio) if (0.0..=1.0).contains(&ratio) => Ok(ratio),
        _ => Err("expected a fraction from 0 to 1, such as 0.1".into()),
    }
}

/// A number above 0.
pub(crate) fn count(text: &str) -> Result<u32, String> {
    text.parse().ok().filter(|count| *count > 0).ok_or_else(|| "expected a whole number above 0".into())
}

/// `1%` or `0.01` of a process's CPU time; `None` for `off` and `none`.
pub(crate) fn budget(text: &str) -> Result<Option<f64>, String> {
    let expected = "expected a share of the process's CPU time above 0 and up to 100%, such as 1%, or off";
    if matches!(text, "off" | "none") {
        return Ok(None);
    }
    let (number, unit) = text.strip_suffix('%').map_or((text, 1.0), |number| (number, 0.01));
    match number.trim().parse::<f64>() {
        Ok(number) if number > 0.0 && number * unit <= 1.0 => Ok(Some(number * unit)),
        _ => Err(expected.into()),
    }
}

/// `5%` or `5` of a process's CPU time, as a share of 1; `None` for `none` and `off`. Below 1 the sign must stand,
/// as a configuration's `0.01` is a share.
pub(crate) fn percent(text: &str) -> Result<Option<f64>, String> {
    let expected =
        "expected a percentage of the process's CPU time, above 0 and up to 100, such as 5%, or none";
    if matches!(text, "off" | "none") {
        return Ok(None);
    }
    let (number, signed) = text.strip_suffix('%').map_or((text, false), |number| (number, true));
    match number.trim().parse::<f64>() {
        Ok(percent) if percent > 0.0 && percent <= 100.0 && (signed || percent >= 1.0) => {
            Ok(Some(percent / 100.0))
        }
        _ => Err(expected.into()),
    }
}

/// `8M`, `65536`; a power of two, as the kernel wants it.
pub(crate) fn ring_bytes(text: &str) -> Result<u32, String> {
    let expected = "expected a power of two from 64K to 1G, such as 8M";
    let (number, unit) = match text.char_indices().last() {
        Some((at, 'K' | 'k')) => (&text[..at], 1 << 10),
        Some((at, 'M' | 'm')) => (&text[..at], 1 << 20),
        Some((at, 'G' | 'g')) => (&text[..at], 1 << 30),
        _ => (text, 1),
    };
    number
        .parse::<u32>()
        .ok()
        .and_then(|n| n.checked_mul(unit))
        .filter(|n| n.is_power_of_two() && (1 << 16..=1 << 30).contains(n))
        .ok_or_else(|| expected.into())
}

/// `65536`, `50M`, `1G`; more than 0.
pub(crate) fn bytes(text: &str) -> Result<u64, String> {
    let (number, unit) = match text.char_indices().last() {
        Some((at, 'K' | 'k')) => (&text[..at], 1 << 10),
        Some((at, 'M' | 'm')) => (&text[..at], 1 << 20),
        Some((at, 'G' | 'g')) => (&text[..at], 1 << 30),
        _ => (text, 1_u64),
    };
    let bytes = number.parse::<u64>().ok().and_then(|n| n.checked_mul(unit)).filter(|&n| n > 0);
    bytes.ok_or_else(|| "expected a number of bytes above 0, such as 50M".into())
}

/// Keeps the text; the exporter takes it apart.
pub(crate) fn header(text: &str) -> Result<String, String> {
    match text.split_once('=') {
        Some((name, _)) if !name.trim().is_empty() => Ok(text.to_owned()),
        // The value may be a secret: not repeated.
        _ => Err("expected NAME=VALUE".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units() {
        for (text, ns) in [
            ("0", 0),
            ("0s", 0),
            ("1ns", 1),
            ("500us", 500_000),
            ("1.5ms", 1_500_000),
            ("10s", 10_000_000_000),
            ("1h30m", 5_400_000_000_000),
            ("2m", 120_000_000_000),
        ] {
            assert_eq!(duration(text).map(|d| d.as_nanos()), Ok(ns), "{text}");
        }
        for bad in ["", "10", "s", "-1s", "1x", "1.2.3s", "ten", "1s2", "400d", "1e3s", ".s", "NaNs"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
        assert!(duration_above_zero("0").is_err());
        assert!(interval("99ms").is_err());
        assert!(interval("100ms").is_ok());
    }

    #[test]
    fn sizes_are_powers_of_two_within_bounds() {
        assert_eq!(ring_bytes("64K"), Ok(1 << 16));
        assert_eq!(ring_bytes("8M"), Ok(8 << 20));
        assert_eq!(ring_bytes("1G"), Ok(1 << 30));
        assert_eq!(ring_bytes("65536"), Ok(1 << 16));
        for bad in ["", "K", "3M", "32K", "2G", "4G", "99999999999", "-8M", "8MB", "µ"] {
            assert!(ring_bytes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn bytes_are_above_zero() {
        assert_eq!(bytes("50M"), Ok(50 << 20));
        assert_eq!(bytes("1"), Ok(1));
        for bad in ["", "0", "0G", "M", "-1", "1T", "99999999999999999999"] {
            assert!(bytes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn budgets_are_shares_in_files_and_percent_on_the_command_line() {
        assert_eq!((budget("1%"), budget("0.01")), (Ok(Some(0.01)), Ok(Some(0.01))));
        assert_eq!(
            (percent("5%"), percent("5"), percent("0.5%")),
            (Ok(Some(0.05)), Ok(Some(0.05)), Ok(Some(0.005)))
        );
        for none in ["off", "none"] {
            assert_eq!((budget(none), percent(none)), (Ok(None), Ok(None)));
        }
        // A share or percent: nobody knows.
        for bad in ["", "0", "0%", "-1%", "101%", "0.05", "NaN", "all"] {
            assert!(percent(bad).is_err(), "{bad}");
        }
        for bad in ["", "0", "5", "101%", "NaN", "all"] {
            assert!(budget(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn shares_and_headers_are_checked() {
        assert_eq!(ratio("0.25"), Ok(0.25));
        for bad in ["-0.1", "1.1", "NaN", "x"] {
            assert!(ratio(bad).is_err(), "{bad}");
        }
        assert!(header("a=b=c").is_ok());
        let error = header("secret").expect_err("no name");
        assert!(!error.contains("secret"));
    }
}
