//! Whether a figure rises over time: the Theil–Sen slope with Sen's confidence interval, and Kendall's tau.
//! Robust: a few outliers change neither (P. K. Sen, "Estimates of the regression coefficient based on
//! Kendall's tau", 1968).

/// A slope with how sure it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Trend {
    /// Lower end of the 95 % confidence interval, a second.
    pub low: f64,
    /// The median of the slopes of all pairs, a second.
    pub slope: f64,
    /// Upper end.
    pub high: f64,
    /// -1 to 1: how many more pairs rise than fall, of all pairs.
    pub tau: f64,
}

/// Points that are looked at; of more, evenly chosen ones.
const MAX_POINTS: usize = 240;
/// With fewer, no slope differs from chance at 95 %.
pub const MIN_POINTS: usize = 5;
/// Two-sided 95 % of the normal distribution.
const Z: f64 = 1.96;

/// The trend of points (time in nanoseconds, value), by ascending time. `None` for fewer than five.
#[must_use]
pub fn trend(points: &[(u64, f64)]) -> Option<Trend> {
    if points.len() < MIN_POINTS {
        return None;
    }
    let chosen: Vec<(u64, f64)> = if points.len() <= MAX_POINTS {
        points.to_vec()
    } else {
        let last = points.len() - 1;
        (0..MAX_POINTS).filter_map(|n| points.get(n * last / (MAX_POINTS - 1)).copied()).collect()
    };
    let n = chosen.len();
    let mut slopes = Vec::with_capacity(n * (n - 1) / 2);
    let mut score = 0_i64;
    for (i, &(t1, y1)) in chosen.iter().enumerate() {
        for &(t2, y2) in &chosen[i + 1..] {
            let seconds = t2.saturating_sub(t1) as f64 / 1e9;
            if seconds <= 0.0 {
                return None;
            }
            slopes.push((y2 - y1) / seconds);
            score += i64::from(y2 > y1) - i64::from(y2 < y1);
        }
    }
    slopes.sort_unstable_by(f64::total_cmp);
    let pairs = slopes.len();
    let count = |n: usize| n as f64;
    // Ties make the variance smaller; leaving them in keeps the interval wide.
    let variance = count(n) * count(n - 1) * count(2 * n + 5) / 18.0;
    let spread = Z * variance.sqrt();
    let below = ((count(pairs) - spread) / 2.0).floor().max(0.0) as usize;
    let low = slopes.get(below).copied()?;
    let high = slopes.get(pairs - 1 - below.min(pairs - 1)).copied()?;
    let middle = |k: usize| slopes.get(k).copied();
    let slope = f64::midpoint(middle((pairs - 1) / 2)?, middle(pairs / 2)?);
    Some(Trend { low, slope, high, tau: score as f64 / count(pairs) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(values: &[f64]) -> Vec<(u64, f64)> {
        values.iter().enumerate().map(|(n, v)| (n as u64 * 1_000_000_000, *v)).collect()
    }

    #[test]
    fn a_line_has_its_slope() {
        let t = trend(&series(&[0.0, 2.0, 4.0, 6.0, 8.0, 10.0])).expect("enough points");
        assert_eq!((t.low, t.slope, t.high), (2.0, 2.0, 2.0));
        assert!((t.tau - 1.0).abs() < 1e-9);
    }

    #[test]
    fn an_outlier_does_not_make_a_trend() {
        let t = trend(&series(&[5.0, 5.0, 5.0, 50.0, 5.0, 5.0, 5.0, 5.0])).expect("enough points");
        assert!(t.low <= 0.0 && t.slope == 0.0, "{t:?}");
    }

    #[test]
    fn what_goes_up_and_down_is_not_sure_to_rise() {
        let t = trend(&series(&[1.0, 4.0, 2.0, 5.0, 1.0, 4.0, 2.0, 5.0, 1.0])).expect("enough points");
        assert!(t.low <= 0.0, "{t:?}");
    }

    #[test]
    fn noise_on_a_rise_keeps_the_slope_within_the_interval() {
        let noisy: Vec<f64> =
            (0..40_u32).map(|n| f64::from(n) * 3.0 + f64::from((n * 7919) % 11) - 5.0).collect();
        let t = trend(&series(&noisy)).expect("enough points");
        assert!(t.low > 2.5 && t.low <= 3.0 && t.high >= 3.0 && t.high < 3.5, "{t:?}");
    }

    #[test]
    fn too_little_says_nothing() {
        assert!(trend(&series(&[1.0, 2.0, 3.0, 4.0])).is_none());
        assert!(trend(&[(5, 1.0), (5, 2.0), (5, 3.0), (5, 4.0), (5, 5.0)]).is_none());
        let long: Vec<(u64, f64)> = (0..5000).map(|n| (n * 1_000_000_000, n as f64)).collect();
        assert!((trend(&long).expect("enough points").slope - 1.0).abs() < 1e-6);
    }
}
