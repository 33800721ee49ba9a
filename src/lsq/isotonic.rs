//! The rising function nearest to points: min Σw(y − f(x))² over functions f that never fall.
//!
//! Neighbours that fall are pooled into their mean until none does (Ayer, Brunk, Ewing, Reid & Silverman, *An empirical distribution function for
//! sampling with incomplete information*, 1955). Points of one x count as their mean. Between the points f is a line, beyond them constant.

/// A rising function through knots.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Isotonic {
    /// Places of the knots, rising.
    pub x: Vec<f64>,
    /// Its value at each.
    pub y: Vec<f64>,
}

impl Isotonic {
    /// Its value at a place; NaN without knots.
    #[must_use]
    pub fn at(&self, x: f64) -> f64 {
        interpolated(&self.x, &self.y, x)
    }
}

/// The value at a place of the function through some knots: a line between two of them, constant beyond; NaN without knots.
#[must_use]
pub fn interpolated(knots: &[f64], values: &[f64], x: f64) -> f64 {
    let above = knots.partition_point(|knot| *knot <= x);
    match (above.checked_sub(1), knots.get(above)) {
        (Some(below), Some(end)) => {
            let (begin, from, to) = (knots[below], values[below], values[above]);
            from + (to - from) * ((x - begin) / (end - begin))
        }
        (Some(last), None) => values[last],
        (None, _) => values.first().copied().unwrap_or(f64::NAN),
    }
}

/// The rising function nearest to points (x, y, w) of finite x and y and w > 0. Points are sorted in place. Θ(n log n).
#[must_use]
pub fn isotonic(points: &mut [(f64, f64, f64)]) -> Isotonic {
    /// A stretch of points in which the function is constant.
    struct Pool {
        first: f64,
        last: f64,
        mean: f64,
        weight: f64,
    }
    points.sort_unstable_by(|one, other| one.0.total_cmp(&other.0).then(one.1.total_cmp(&other.1)).then(one.2.total_cmp(&other.2)));
    let mut pools: Vec<Pool> = Vec::new();
    for same in points.chunk_by(|one, other| one.0 == other.0) {
        let weight: f64 = same.iter().map(|point| point.2).sum();
        let mean = same.iter().map(|point| point.1 * point.2).sum::<f64>() / weight;
        let mut pool = Pool { first: same[0].0, last: same[0].0, mean, weight };
        while let Some(before) = pools.pop_if(|before| before.mean >= pool.mean) {
            let weight = before.weight + pool.weight;
            let mean = before.mean + (pool.mean - before.mean) * (pool.weight / weight);
            pool = Pool { first: before.first, last: pool.last, mean, weight };
        }
        pools.push(pool);
    }
    let mut found = Isotonic::default();
    for pool in pools {
        found.x.push(pool.first);
        found.y.push(pool.mean);
        if pool.last > pool.first {
            found.x.push(pool.last);
            found.y.push(pool.mean);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn falling_neighbours_are_pooled() {
        let mut points = [(3.0, 2.0, 1.0), (1.0, 1.0, 1.0), (2.0, 4.0, 1.0), (4.0, 3.0, 2.0), (5.0, 6.0, 1.0), (5.0, 8.0, 3.0)];
        let found = isotonic(&mut points);
        // 4, 2, 3, 3 have the mean 3; the two points at 5 that of 6 and 8 with weights of 1 and 3.
        assert_eq!(found, Isotonic { x: vec![1.0, 2.0, 4.0, 5.0], y: vec![1.0, 3.0, 3.0, 7.5] });
        for (x, y) in [(0.0, 1.0), (1.0, 1.0), (1.5, 2.0), (3.3, 3.0), (4.5, 5.25), (5.0, 7.5), (9.0, 7.5)] {
            assert_eq!(found.at(x), y, "at {x}");
        }
        assert!(Isotonic::default().at(1.0).is_nan());
    }

    #[test]
    fn the_nearest_rising_function_cannot_be_bettered() {
        // Conditions of Karush, Kuhn and Tucker: within a pool the sums of residuals from its left end are ≥ 0, and 0 at its right end.
        let value = |place: u32| f64::from(place * 7919 % 101);
        let mut points: Vec<(f64, f64, f64)> = (0..200).map(|place| (f64::from(place), value(place), 1.0 + f64::from(place % 3))).collect();
        let found = isotonic(&mut points);
        assert!(found.y.is_sorted() && found.x.is_sorted());
        let mut begin = 0;
        while begin < points.len() {
            let level = found.at(points[begin].0);
            let end = (begin..points.len()).find(|place| found.at(points[*place].0) != level).unwrap_or(points.len());
            let mut sum = 0.0;
            for point in &points[begin..end] {
                sum += point.2 * (point.1 - level);
                assert!(sum > -1e-9, "{sum}");
            }
            assert!(sum.abs() < 1e-9, "{sum}");
            begin = end;
        }
    }
}
