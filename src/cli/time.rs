//! Timestamps as recordings write them: Unix milliseconds with up to three decimals, kept to the microsecond.

use chrono::{DateTime, Utc};
use prost_types::Timestamp;

/// The latest time that protobuf can say: the end of the year 9999, in microseconds since 1970.
const LATEST_MICROS: i64 = 253_402_300_800_000_000 - 1;

/// Decimals beyond these cannot matter.
const MAX_DECIMALS: usize = 18;

/// Reads a JSON number of milliseconds since 1970, as microseconds; finer digits are cut off. It is not read as a floating
/// point number, which would move it. None where it is no number, or outside the years 1970 to 9999.
pub(super) fn micros_from_json(number: &str) -> Option<i64> {
    let (mantissa, exponent) = match number.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, exponent.parse().ok()?),
        None => (number, 0_i32),
    };
    let (whole, decimals) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let decimals = decimals.get(..MAX_DECIMALS).unwrap_or(decimals);
    let digits: i128 = format!("{whole}{decimals}").parse().ok()?;
    let power = exponent.checked_add(3)?.checked_sub(i32::try_from(decimals.len()).ok()?)?;
    let scale = 10_i128.checked_pow(power.unsigned_abs());
    let micros = if power >= 0 { digits.checked_mul(scale?)? } else { scale.map_or(0, |scale| digits / scale) };
    in_range(i64::try_from(micros).ok()?)
}

/// Reads an RFC 3339 text as microseconds since 1970; finer digits are cut off.
pub(super) fn micros_from_text(text: &str) -> Option<i64> {
    in_range(DateTime::parse_from_rfc3339(text).ok()?.timestamp_micros())
}

fn in_range(micros: i64) -> Option<i64> {
    (0..=LATEST_MICROS).contains(&micros).then_some(micros)
}

/// Writes microseconds since 1970 as milliseconds, with decimals only where they say something.
pub(super) fn millis_text(micros: i64) -> String {
    let (millis, rest) = (micros.div_euclid(1_000), micros.rem_euclid(1_000));
    if rest == 0 {
        return millis.to_string();
    }
    format!("{millis}.{rest:03}").trim_end_matches('0').to_owned()
}

/// Microseconds since 1970 as a time.
pub(super) fn time(micros: i64) -> DateTime<Utc> {
    DateTime::from_timestamp_micros(micros).unwrap_or(DateTime::UNIX_EPOCH)
}

/// Microseconds since 1970 as protobuf says them.
pub(super) fn to_proto(micros: i64) -> Timestamp {
    let nanos = i32::try_from(micros.rem_euclid(1_000_000) * 1_000).unwrap_or(0);
    Timestamp { seconds: micros.div_euclid(1_000_000), nanos }
}

/// Microseconds since 1970 from protobuf.
pub(super) fn from_proto(timestamp: &Timestamp) -> i64 {
    timestamp.seconds.saturating_mul(1_000_000).saturating_add(i64::from(timestamp.nanos) / 1_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn milliseconds_are_read_to_the_microsecond_and_written_back_the_same() {
        for (text, micros) in [
            ("0", 0),
            ("1793491200000", 1_793_491_200_000_000),
            ("1793491200000.5", 1_793_491_200_000_500),
            ("1793491200000.001", 1_793_491_200_000_001),
            ("253402300799999.999", LATEST_MICROS),
        ] {
            assert_eq!(micros_from_json(text), Some(micros), "{text}");
            assert_eq!(millis_text(micros), text);
            assert_eq!(from_proto(&to_proto(micros)), micros);
        }
    }

    #[test]
    fn numbers_are_read_however_json_writes_them() {
        for (text, micros) in [
            ("1.7934912e12", 1_793_491_200_000_000),
            ("17934912E+05", 1_793_491_200_000_000),
            ("1793491200000000e-3", 1_793_491_200_000_000),
            ("1.0009999999999999999999999999999999999999999", 1_000),
            ("1e-400", 0),
            ("-0", 0),
        ] {
            assert_eq!(micros_from_json(text), Some(micros), "{text}");
        }
        for wrong in ["-1", "1e400", "253402300800000", "\"1\"", "null", "1e99999999999", ""] {
            assert_eq!(micros_from_json(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn rfc_3339_is_read_in_any_zone() {
        assert_eq!(micros_from_text("1970-01-01T01:00:00.0000019+01:00"), Some(1));
        for wrong in ["1969-12-31T23:59:59Z", "1970-01-01", ""] {
            assert_eq!(micros_from_text(wrong), None, "{wrong}");
        }
    }
}
