//! What flags say: counts, durations, bytes, distances, bounds, and names of what the library has.

use crate::error::{Error, Result};
use crate::report::Distance;
use std::str::FromStr;
use std::time::Duration;

/// Refuses a count of zero.
pub(super) fn positive<T: Default + PartialEq>(flag: &str, value: Option<T>) -> Result<()> {
    if value == Some(T::default()) { Err(Error::Usage(format!("{flag} must be one or more"))) } else { Ok(()) }
}

/// Reads a duration.
pub(super) fn duration(text: &str) -> std::result::Result<Duration, String> {
    humantime::parse_duration(text).map_err(|e| format!("not a duration such as 90s, 10m or 1h 30m ({e})"))
}

/// Reads a duration of more than nothing.
pub(super) fn some_duration(text: &str) -> std::result::Result<Duration, String> {
    duration(text).and_then(|time| if time.is_zero() { Err("must be more than zero".into()) } else { Ok(time) })
}

/// Reads a number of bytes: `512M`, `2G`, `1GiB` count by 1,024, `1GB` by 1,000.
pub(super) fn bytes(flag: &str, text: &str) -> Result<u64> {
    let fail = || Error::Usage(format!("{flag} {text}: not a number of bytes such as 512M, 2G or 1GiB"));
    let digits = text.trim().trim_end_matches(|c: char| c.is_ascii_alphabetic() || c == ' ');
    let unit = text.trim()[digits.len()..].trim().to_ascii_lowercase();
    let (base, power) = match unit.as_str() {
        "" | "b" => (1, 0),
        _ => {
            let power = "kmgt".find(&unit[..1]).ok_or_else(fail)? as u32 + 1;
            match &unit[1..] {
                "" | "ib" => (1024_u64, power),
                "b" => (1000, power),
                _ => return Err(fail()),
            }
        }
    };
    let number: f64 = digits.parse().map_err(|_| fail())?;
    let value = number * base.pow(power) as f64;
    if value.is_finite() && (1.0..u64::MAX as f64).contains(&value) { Ok(value as u64) } else { Err(fail()) }
}

/// What a flag names.
pub(super) fn named<T: FromStr<Err = Error>>(flag: &str, name: &str) -> Result<T> {
    name.parse().map_err(|e| Error::Usage(format!("{flag}: {e}")))
}

/// Reads one radius or several, none twice.
pub(super) fn distances(text: &str) -> Result<Vec<Distance>> {
    let list = text.split(',').map(|one| distance("--eps", one)).collect::<Result<Vec<_>>>()?;
    for (i, eps) in list.iter().enumerate() {
        if list.len() > 1 && eps.value.is_infinite() {
            return Err(Error::Usage(format!("--eps {text}: inf cannot be one of several")));
        }
        if list[..i].iter().any(|earlier| earlier.value == eps.value) {
            return Err(Error::Usage(format!("--eps {text}: {} is there twice", eps.text)));
        }
    }
    Ok(list)
}

/// Reads a distance: a decimal, a fraction, or `inf`.
pub(super) fn distance(flag: &str, text: &str) -> Result<Distance> {
    let text = text.trim();
    let number = |t: &str| t.trim().parse::<f64>().ok().filter(|v| !v.is_nan());
    let value = match text.split_once('/') {
        Some((n, d)) => number(n).zip(number(d)).map(|(n, d)| n / d).filter(|v| v.is_finite()),
        None => number(text),
    };
    match value {
        None => Err(Error::Usage(format!("{flag} {text}: not a number or a fraction such as 8/255"))),
        Some(v) if v < 0.0 => Err(Error::Usage(format!("{flag} {text}: must be zero or more"))),
        Some(v) if v.is_infinite() && flag != "--eps" => Err(Error::Usage(format!("{flag} {text}: must be finite"))),
        Some(value) => Ok(Distance { text: text.to_string(), value }),
    }
}

pub(super) fn bounds(text: &str) -> Result<Option<(f32, f32)>> {
    if text == "none" {
        return Ok(None);
    }
    let pair = text.split_once(',').and_then(|(lo, hi)| Some((lo.trim().parse().ok()?, hi.trim().parse().ok()?)));
    match pair {
        Some((lo, hi)) if f32::is_finite(lo) && f32::is_finite(hi) && lo < hi => Ok(Some((lo, hi))),
        _ => Err(Error::Usage(format!("--bounds {text}: two finite numbers, the lower one first, or none"))),
    }
}

/// Whether 8-bit values are delivered: other bounds than 0 and 1 have none.
pub(super) fn delivers_bytes(no_quantize: bool, bounds: Option<(f32, f32)>) -> bool {
    !no_quantize && bounds == Some((0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attack::{Loss, Method, Norm};

    #[test]
    fn bytes_have_units() {
        let read = |text: &str| bytes("--memory", text).ok();
        assert_eq!(read("4096"), Some(4096));
        assert_eq!(read("512M"), Some(512 << 20));
        assert_eq!(read("2G"), Some(2 << 30));
        assert_eq!(read("1GiB"), Some(1 << 30));
        assert_eq!(read("1 gib"), Some(1 << 30));
        assert_eq!(read("1.5k"), Some(1536));
        assert_eq!(read("3MB"), Some(3_000_000));
        assert_eq!(read("1T"), Some(1 << 40));
        for bad in
            ["", "G", "0", "-1", "1X", "1GiBs", "1e30", "nan", "inf", "0.1", "1é", "é", "1 2", "18446744073709551616"]
        {
            let error = bytes("--memory", bad).unwrap_err();
            assert!(error.exit_code() == 2 && error.to_string().starts_with("--memory"), "{bad}");
        }
    }

    #[test]
    fn distances_are_decimals_fractions_or_inf() {
        let value = |t: &str| distance("--eps", t).map(|d| d.value).map_err(|e| e.to_string());
        assert_eq!(value("8/255"), Ok(8.0 / 255.0));
        assert_eq!(value("0.5/255"), Ok(0.5 / 255.0));
        assert_eq!(value("0.3"), Ok(0.3));
        assert_eq!(value("inf"), Ok(f64::INFINITY));
        for bad in ["", "x", "-1", "-1/255", "1/0", "0/0", "nan", "8/", "1/2/3"] {
            let message = value(bad).unwrap_err();
            assert!(message.starts_with("--eps"), "{bad}: {message}");
        }
        assert!(distance("--step-size", "inf").is_err());
    }

    #[test]
    fn bounds_are_two_numbers_or_none() {
        assert_eq!(bounds("0,1"), Ok(Some((0.0, 1.0))));
        assert_eq!(bounds("-2.5, 2.5"), Ok(Some((-2.5, 2.5))));
        assert_eq!(bounds("none"), Ok(None));
        for bad in ["1,0", "0", "0,nan", "0,inf", "a,b", "0,1,2"] {
            assert!(bounds(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_are_read_with_their_flag() {
        let method = |name: &str| named::<Method>("--method", name);
        assert!(method("nonsense").unwrap_err().to_string().contains("--method: no method"));
        let norm = |name: &str| named::<Norm>("--norm", name);
        assert_eq!((method("pgd"), norm("LInf"), norm("L2")), (Ok(Method::Pgd), Ok(Norm::Linf), Ok(Norm::L2)));
        assert!(norm("l3").unwrap_err().to_string().contains("--norm"));
        assert!(named::<Loss>("--loss", "mse").unwrap_err().to_string().contains("--loss: no loss"));
    }
}
