//! Distributions that tests and intervals need: tail probabilities without cancellation, and Student's quantile.
//!
//! Tails are regularised incomplete beta functions: P(|T| > t) = I(ν/(ν+t²); ν/2, ½) and P(F > f) = I(d₂/(d₂+d₁f); d₂/2, d₁/2)
//! (Abramowitz & Stegun 26.5.27 and 26.6.2), so that a p-value of 1e-200 is one, and not 0.

use std::cell::Cell;

use statrs::function::erf::erf_inv;
use statrs::function::gamma::{gamma_ur, ln_gamma};

/// ln B(a, b), also where a is so large that differences of ln Γ would cancel: Stirling's series then cancels by algebra.
fn ln_beta(a: f64, b: f64) -> f64 {
    let (small, large) = if a < b { (a, b) } else { (b, a) };
    if large < 50.0 {
        return ln_gamma(small) + ln_gamma(large) - ln_gamma(small + large);
    }
    // Remainder of Stirling's series (Abramowitz & Stegun 6.1.41).
    let rest = |z: f64| {
        let inverse = 1.0 / z;
        let square = inverse * inverse;
        inverse * (1.0 / 12.0 - square * (1.0 / 360.0 - square * (1.0 / 1260.0 - square / 1680.0)))
    };
    let sum = small + large;
    // ln Γ(large) − ln Γ(large + small).
    let ratio = small - (large - 0.5) * (small / large).ln_1p() - small * sum.ln() + rest(large) - rest(sum);
    ln_gamma(small) + ratio
}

/// The regularised incomplete beta function I(x; a, b), with 1 − x given beside x so that neither is rounded.
///
/// Lentz's method on the continued fraction (Press, Teukolsky, Vetterling & Flannery, *Numerical Recipes*, 3rd ed., §6.4), on the side on
/// which it converges fast.
fn incomplete_beta(x: f64, complement: f64, a: f64, b: f64) -> f64 {
    if x <= 0.0 {
        return 0.0;
    }
    if complement <= 0.0 {
        return 1.0;
    }
    if x > (a + 1.0) / (a + b + 2.0) {
        return 1.0 - incomplete_beta_left(complement, x, b, a);
    }
    incomplete_beta_left(x, complement, a, b)
}

fn incomplete_beta_left(x: f64, complement: f64, a: f64, b: f64) -> f64 {
    const TINY: f64 = 1e-300;
    // ln x where x is near 1 is known better through 1 − x.
    let ln = |x: f64, complement: f64| if x > 0.5 { (-complement).ln_1p() } else { x.ln() };
    let front = (a * ln(x, complement) + b * ln(complement, x) - ln_beta(a, b)).exp() / a;
    let guard = |value: f64| if value.abs() < TINY { TINY } else { value };
    let mut c = 1.0;
    let mut d = 1.0 / guard(1.0 - (a + b) * x / (a + 1.0));
    let mut fraction = d;
    for step in 1..200_000_u32 {
        let m = f64::from(step);
        let even = m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m));
        d = 1.0 / guard(1.0 + even * d);
        c = guard(1.0 + even / c);
        fraction *= d * c;
        let odd = -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0));
        d = 1.0 / guard(1.0 + odd * d);
        c = guard(1.0 + odd / c);
        let factor = d * c;
        fraction *= factor;
        if (factor - 1.0).abs() < 1e-16 {
            break;
        }
    }
    front * fraction
}

/// Two-sided p-value of a t statistic with `degrees` > 0 degrees of freedom.
#[must_use]
pub fn student_t_p(t: f64, degrees: f64) -> f64 {
    if !t.is_finite() {
        return if t.is_nan() { f64::NAN } else { 0.0 };
    }
    let square = t * t;
    if square.is_infinite() {
        return 0.0;
    }
    incomplete_beta(degrees / (degrees + square), square / (degrees + square), 0.5 * degrees, 0.5)
}

/// Upper tail of an F statistic with d₁, d₂ > 0 degrees of freedom.
#[must_use]
pub fn f_p(f: f64, first: f64, second: f64) -> f64 {
    if f.is_nan() || first <= 0.0 || second <= 0.0 {
        return f64::NAN;
    }
    if f <= 0.0 {
        return 1.0;
    }
    let product = first * f;
    if product.is_infinite() {
        return 0.0;
    }
    incomplete_beta(second / (second + product), product / (second + product), 0.5 * second, 0.5 * first)
}

/// Upper tail of χ² with `degrees` > 0 degrees of freedom.
#[must_use]
pub fn chi_squared_p(statistic: f64, degrees: f64) -> f64 {
    if statistic.is_nan() {
        f64::NAN
    } else if statistic <= 0.0 {
        1.0
    } else if statistic.is_infinite() {
        0.0
    } else {
        gamma_ur(0.5 * degrees, 0.5 * statistic)
    }
}

/// The x for which P(χ² > x) = `tail`, with `degrees` > 0.
///
/// Newton's method on the logarithm of the tail, which is concave, within a bracket.
#[must_use]
pub fn chi_squared_quantile(tail: f64, degrees: f64) -> f64 {
    if !(tail > 0.0 && tail < 1.0) || degrees.is_nan() || degrees <= 0.0 {
        return f64::NAN;
    }
    let half = 0.5 * degrees;
    let constant = -half * std::f64::consts::LN_2 - ln_gamma(half);
    let density = |x: f64| ((half - 1.0).mul_add(x.ln(), constant) - 0.5 * x).exp();
    let p = |x| chi_squared_p(x, degrees);
    let (low, high) = bracket(tail, degrees.max(1.0), 2.0, p);
    where_tail_is(tail, (low, high), high, 1e-14, p, density)
}

/// A lower and an upper bound of the x > 0 for which the falling `p` is `tail`: the upper one grows from `high` by a factor.
fn bracket(tail: f64, mut high: f64, growth: f64, p: impl Fn(f64) -> f64) -> (f64, f64) {
    let mut low = 0.0;
    while p(high) > tail && high < 1e150 {
        low = high;
        high *= growth;
    }
    (low, high)
}

/// The x > 0 in a bracket for which the falling `p`, whose derivative is −`density`, is `tail`: by Newton's method on ln p, halving the
/// bracket where that leaves it, until a step is at most `tolerance` of x.
fn where_tail_is(
    tail: f64,
    (mut low, mut high): (f64, f64),
    start: f64,
    tolerance: f64,
    p: impl Fn(f64) -> f64,
    density: impl Fn(f64) -> f64,
) -> f64 {
    let mut x = start;
    for _ in 0..200 {
        let above = p(x);
        if above > tail {
            low = x
        } else {
            high = x
        }
        let next = x + above * (above / tail).ln() / density(x);
        let next = if next > low && next < high { next } else { 0.5 * (low + high) };
        if (next - x).abs() <= tolerance * x {
            return next;
        }
        x = next;
    }
    x
}

/// Quantiles that a thread keeps at hand.
const KEPT: usize = 16;

thread_local! {
    /// A level, degrees of freedom and their quantile, each at a place that follows from its bits: one model is asked thousands of times.
    static QUANTILES: [Cell<(f64, f64, f64)>; KEPT] = const { [const { Cell::new((f64::NAN, f64::NAN, f64::NAN)) }; KEPT] };
}

/// The t for which P(|T| ≤ t) = `level`, with `degrees` > 0.
#[must_use]
pub fn student_t_quantile(level: f64, degrees: f64) -> f64 {
    let bits = (level.to_bits() ^ degrees.to_bits().rotate_left(17)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let place = (bits >> 60) as usize % KEPT;
    QUANTILES.with(|kept| {
        let mut found = kept[place].get();
        if (found.0, found.1) != (level, degrees) {
            found = (level, degrees, computed_quantile(level, degrees));
            kept[place].set(found);
        }
        found.2
    })
}

/// Newton's method on the logarithm of the two-sided tail, from the normal approximation; the tail itself is accurate to rounding, so
/// the quantile is too.
fn computed_quantile(level: f64, degrees: f64) -> f64 {
    if !(level > 0.0 && level < 1.0) || degrees.is_nan() || degrees <= 0.0 {
        return f64::NAN;
    }
    let tail = 1.0 - level;
    // Closed forms where Newton starts badly (Abramowitz & Stegun 26.7.3-4).
    if degrees == 1.0 {
        return (std::f64::consts::FRAC_PI_2 * level).tan();
    }
    if degrees == 2.0 {
        return level * (2.0 / (tail * (1.0 + level))).sqrt();
    }
    if degrees > 1e5 {
        // Fisher's expansion about the normal quantile (Abramowitz & Stegun 26.7.5); the next term is of the order of degrees⁻⁴.
        let z = std::f64::consts::SQRT_2 * erf_inv(level);
        let (z2, n) = (z * z, degrees);
        let one = (z2 + 1.0) / 4.0;
        let two = ((5.0 * z2 + 16.0) * z2 + 3.0) / 96.0;
        let three = (((3.0 * z2 + 19.0) * z2 + 17.0) * z2 - 15.0) / 384.0;
        return z * (1.0 + (one + (two + three / n) / n) / n);
    }
    // The density is ½·(1 + t²/ν)^(−(ν+1)/2) / (√ν·B(½, ν/2)) on each side.
    let constant = -ln_beta(0.5, 0.5 * degrees) - 0.5 * degrees.ln();
    let density = |t: f64| 2.0 * (constant - 0.5 * (degrees + 1.0) * (t * t / degrees).ln_1p()).exp();
    let p = |t| student_t_p(t, degrees);
    let (low, high) = bracket(tail, 1.0, 4.0, p);
    where_tail_is(tail, (low, high), 0.5 * (low + high), 1e-15, p, density)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(got: f64, expected: f64, tolerance: f64) {
        assert!((got - expected).abs() <= tolerance * expected.abs(), "{got} is not {expected}");
    }

    #[test]
    fn quantiles_are_those_of_the_tables() {
        // Exact forms: ν = 1 is tan, ν = 2 is algebraic, ν = 4 solves a cubic; the others are the tables' digits.
        close(student_t_quantile(0.95, 1.0), 12.706_204_736_174_694, 1e-14);
        close(student_t_quantile(0.95, 2.0), 4.302_652_729_749_462, 1e-14);
        close(student_t_quantile(0.95, 9.0), 2.262_157_162_798_205, 1e-12);
        close(student_t_quantile(0.99, 10.0), 3.169_272_672_616_872_4, 1e-12);
        close(student_t_quantile(0.95, 1e9), 1.959_963_987, 1e-9);
        close(student_t_quantile(0.95, 1e5), student_t_quantile(0.95, 1e5 + 1e-3), 1e-10);
    }

    #[test]
    fn a_quantile_undoes_its_tail() {
        for degrees in [1.0, 2.0, 2.5, 3.0, 7.0, 30.0, 1e4, 1e7] {
            for level in [0.01, 0.5, 0.8, 0.95, 0.999, 0.999_999] {
                let t = student_t_quantile(level, degrees);
                close(student_t_p(t, degrees), 1.0 - level, 1e-9);
            }
        }
    }

    #[test]
    fn quantiles_of_chi_squared_are_those_of_the_tables_and_undo_their_tails() {
        // ν = 2 is exponential; the others are the tables' digits.
        close(chi_squared_quantile(0.05, 2.0), -2.0 * 0.05_f64.ln(), 1e-13);
        close(chi_squared_quantile(0.05, 1.0), 3.841_458_820_694_124, 1e-12);
        close(chi_squared_quantile(0.001, 9.0), 27.877_164_871_256_57, 1e-12);
        for degrees in [0.5, 1.0, 3.0, 9.0, 21.0, 400.0] {
            for tail in [1e-9, 1e-5, 0.01, 0.5, 0.99] {
                close(chi_squared_p(chi_squared_quantile(tail, degrees), degrees), tail, 1e-9);
            }
        }
        assert!(chi_squared_quantile(0.0, 3.0).is_nan() && chi_squared_quantile(0.5, 0.0).is_nan());
    }

    #[test]
    fn small_tails_do_not_vanish() {
        assert!(student_t_p(1e20, 10.0) > 0.0);
        // F with (1, ν) degrees is t².
        close(f_p(9.0, 1.0, 12.0), student_t_p(3.0, 12.0), 1e-13);
        assert!(f_p(f64::INFINITY, 3.0, 5.0) == 0.0 && f_p(f64::NAN, 1.0, 1.0).is_nan());
    }
}
