//! What the answer to a request means, and how long to wait before it is made again.
//!
//! Facts: OpenTelemetry protocol specification 1.9, "OTLP/gRPC response", "OTLP/HTTP response".
//! Pure: no clock but the one given, no I/O.

use std::time::{Duration, SystemTime};

use tonic::Code;

/// Wait before the first repetition.
pub(super) const FIRST_BACKOFF: Duration = Duration::from_millis(500);
/// Longest wait between repetitions that gotrace chooses itself.
pub(super) const LONGEST_BACKOFF: Duration = Duration::from_secs(30);
/// Longest wait that a collector may ask for; what asks for more is treated as this.
pub(super) const LONGEST_ASKED: Duration = Duration::from_secs(120);
/// How long a request is repeated before it is given up.
pub(super) const PATIENCE: Duration = Duration::from_secs(300);

/// What came of one attempt.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Answer {
    /// Taken, but for `rejected` spans or points.
    Taken {
        /// Spans or points that the collector refused.
        rejected: u64,
        /// What it said of them, or of the rest.
        message: String,
    },
    /// Worth repeating.
    Again {
        /// The collector's own wish.
        after: Option<Duration>,
        /// What is wrong.
        message: String,
    },
    /// Not worth repeating.
    Refused {
        /// What is wrong.
        message: String,
    },
}

/// Whether a gRPC status is worth repeating. `RESOURCE_EXHAUSTED` is only when the server says when.
pub(super) fn grpc_is_retryable(code: Code, retry_info: bool) -> bool {
    match code {
        Code::Cancelled
        | Code::DeadlineExceeded
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unavailable
        | Code::DataLoss => true,
        Code::ResourceExhausted => retry_info,
        _ => false,
    }
}

/// Whether an HTTP status is worth repeating.
pub(super) const fn http_is_retryable(status: u16) -> bool {
    matches!(status, 429 | 502 | 503 | 504)
}

/// `Retry-After`: seconds, or a date (RFC 9110, section 10.2.3).
pub(super) fn retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

/// Waits that grow from [`FIRST_BACKOFF`] to [`LONGEST_BACKOFF`].
#[derive(Debug)]
pub(super) struct Backoff {
    next: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { next: FIRST_BACKOFF }
    }
}

impl Backoff {
    /// The next wait: what the collector asks for, and a little more, so that its clients do not come
    /// back at once; else between half of a doubling wait and the whole. `random` is in [0, 1).
    pub fn next(&mut self, asked: Option<Duration>, random: f64) -> Duration {
        let random = random.clamp(0.0, 1.0);
        if let Some(asked) = asked {
            return asked.min(LONGEST_ASKED).mul_f64(1.0 + random / 10.0);
        }
        let wait = self.next.mul_f64(0.5 + random / 2.0);
        self.next = (self.next * 2).min(LONGEST_BACKOFF);
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_specifications_tables() {
        let retryable: Vec<i32> = (0..17).filter(|c| grpc_is_retryable(Code::from_i32(*c), false)).collect();
        assert_eq!(retryable, [1, 4, 10, 11, 14, 15]);
        assert!(grpc_is_retryable(Code::ResourceExhausted, true));
        assert!(!grpc_is_retryable(Code::InvalidArgument, true));
        let retryable: Vec<u16> = (200..600).filter(|s| http_is_retryable(*s)).collect();
        assert_eq!(retryable, [429, 502, 503, 504]);
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        assert_eq!(retry_after(" 7 ", now), Some(Duration::from_secs(7)));
        assert_eq!(retry_after("Sun, 06 Nov 1994 08:49:47 GMT", now), Some(Duration::from_secs(10)));
        assert_eq!(retry_after("Sun, 06 Nov 1994 08:49:07 GMT", now), Some(Duration::ZERO));
        assert_eq!(retry_after("soon", now), None);
        assert_eq!(retry_after("-1", now), None);
    }

    #[test]
    fn waits_double_up_to_the_longest_with_jitter() {
        let mut low = Backoff::default();
        let mut high = Backoff::default();
        let mut whole = FIRST_BACKOFF;
        for _ in 0..20 {
            assert_eq!(low.next(None, 0.0), whole / 2);
            assert!(high.next(None, 0.999) > whole.mul_f64(0.99));
            whole = (whole * 2).min(LONGEST_BACKOFF);
        }
        assert_eq!(whole, LONGEST_BACKOFF);
    }

    #[test]
    fn the_collectors_wish_is_followed_up_to_a_bound() {
        let mut backoff = Backoff::default();
        let asked = Duration::from_secs(3);
        assert_eq!(backoff.next(Some(asked), 0.0), asked);
        assert!(backoff.next(Some(asked), 0.9) > asked);
        assert_eq!(backoff.next(Some(Duration::MAX), 0.0), LONGEST_ASKED);
        assert_eq!(backoff.next(None, 0.0), FIRST_BACKOFF / 2);
    }
}
