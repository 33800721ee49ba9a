//! Twice the working precision: an unevaluated sum of two `f64`, about 32 decimal digits, and the vector loops that need it.
//!
//! Error-free transformations: two-sum (Knuth, *The Art of Computer Programming* 2, §4.2.2), two-product by fused multiply-add;
//! arithmetic after Hida, Li & Bailey, *Algorithms for quad-double precision floating point arithmetic* (ARITH 2001). The loops are
//! dispatched at run time to the widest instructions of the processor; without a fused multiply-add they are right but slow.

use std::ops::{Add, AddAssign, Mul, Neg, Sub};

/// hi + lo with |lo| ≤ ½ ulp(hi).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Double {
    /// The nearest `f64`.
    pub hi: f64,
    /// What is left.
    pub lo: f64,
}

/// a + b = s + e exactly.
#[inline(always)]
pub(crate) fn two_sum(a: f64, b: f64) -> (f64, f64) {
    let s = a + b;
    let t = s - a;
    (s, (a - (s - t)) + (b - t))
}

/// a + b = s + e exactly, if |a| ≥ |b|.
#[inline(always)]
fn quick_two_sum(a: f64, b: f64) -> (f64, f64) {
    let s = a + b;
    (s, b - (s - a))
}

/// a·b = p + e exactly, barring underflow.
#[inline(always)]
pub(crate) fn two_product(a: f64, b: f64) -> (f64, f64) {
    let p = a * b;
    (p, a.mul_add(b, -p))
}

impl Double {
    /// Zero.
    pub const ZERO: Self = Self { hi: 0.0, lo: 0.0 };

    /// The sum of two floats, exactly.
    #[inline(always)]
    #[must_use]
    pub fn sum(a: f64, b: f64) -> Self {
        let (hi, lo) = two_sum(a, b);
        Self { hi, lo }
    }

    /// The product of two floats, exactly.
    #[inline(always)]
    #[must_use]
    pub fn product(a: f64, b: f64) -> Self {
        let (hi, lo) = two_product(a, b);
        Self { hi, lo }
    }

    /// The nearest float.
    #[inline(always)]
    #[must_use]
    pub fn to_f64(self) -> f64 {
        self.hi + self.lo
    }

    /// The quotient, to about 31 digits.
    #[must_use]
    pub fn divide(self, by: Self) -> Self {
        let first = self.hi / by.hi;
        if !first.is_finite() {
            return Self::from(first);
        }
        let rest = self - by * first;
        let second = rest.hi / by.hi;
        let rest = rest - by * second;
        let third = rest.hi / by.hi;
        let (hi, lo) = quick_two_sum(first, second);
        Self { hi, lo } + Self::from(third)
    }
}

impl From<f64> for Double {
    #[inline(always)]
    fn from(hi: f64) -> Self {
        Self { hi, lo: 0.0 }
    }
}

impl Neg for Double {
    type Output = Self;
    #[inline(always)]
    fn neg(self) -> Self {
        Self { hi: -self.hi, lo: -self.lo }
    }
}

impl Add for Double {
    type Output = Self;
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        let (s, e) = two_sum(self.hi, other.hi);
        let (t, f) = two_sum(self.lo, other.lo);
        let (s, e) = quick_two_sum(s, e + t);
        let (hi, lo) = quick_two_sum(s, e + f);
        Self { hi, lo }
    }
}

impl AddAssign for Double {
    #[inline(always)]
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Sub for Double {
    type Output = Self;
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        self + -other
    }
}

impl Mul for Double {
    type Output = Self;
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        let (p, e) = two_product(self.hi, other.hi);
        let (hi, lo) = quick_two_sum(p, e + self.hi.mul_add(other.lo, self.lo * other.hi));
        Self { hi, lo }
    }
}

impl Mul<f64> for Double {
    type Output = Self;
    #[inline(always)]
    fn mul(self, other: f64) -> Self {
        let (p, e) = two_product(self.hi, other);
        let (hi, lo) = quick_two_sum(p, self.lo.mul_add(other, e));
        Self { hi, lo }
    }
}

/// A column of doubles held as two slices.
#[derive(Clone, Copy)]
pub(crate) struct Column<'a> {
    pub(crate) hi: &'a [f64],
    pub(crate) lo: &'a [f64],
}

/// The same, to be written.
pub(crate) struct ColumnMut<'a> {
    pub(crate) hi: &'a mut [f64],
    pub(crate) lo: &'a mut [f64],
}

/// out ← (x − centre)·scale for a power-of-two `scale`, exactly as a double (x is hi + lo).
pub(crate) fn centre(arch: pulp::Arch, x: &[f64], x_low: Option<&[f64]>, centre: f64, scale: f64, out: ColumnMut<'_>) {
    let ColumnMut { hi, lo } = out;
    arch.dispatch(
        #[inline(always)]
        || {
            let rows = x.len().min(hi.len()).min(lo.len());
            let (x, hi, lo) = (&x[..rows], &mut hi[..rows], &mut lo[..rows]);
            for ((x, hi), lo) in x.iter().zip(hi.iter_mut()).zip(lo.iter_mut()) {
                let (s, e) = two_sum(*x, -centre);
                (*hi, *lo) = (s * scale, e * scale);
            }
            if let Some(low) = x_low {
                for ((low, hi), lo) in low.iter().zip(hi.iter_mut()).zip(lo.iter_mut()) {
                    (*hi, *lo) = two_sum(*hi, low.mul_add(scale, *lo));
                }
            }
        },
    );
}

/// out ← out + factor·x.
pub(crate) fn axpy(arch: pulp::Arch, factor: Double, x: Column<'_>, out: ColumnMut<'_>) {
    let ColumnMut { hi, lo } = out;
    arch.dispatch(
        #[inline(always)]
        || {
            let rows = hi.len();
            let (x_hi, x_lo, hi, lo) = (&x.hi[..rows], &x.lo[..rows], &mut hi[..rows], &mut lo[..rows]);
            for row in 0..rows {
                let (p, e) = two_product(factor.hi, x_hi[row]);
                let e = factor.hi.mul_add(x_lo[row], factor.lo.mul_add(x_hi[row], e));
                let (s, t) = two_sum(hi[row], p);
                let (s, t) = quick_two_sum(s, t + (lo[row] + e));
                (hi[row], lo[row]) = (s, t);
            }
        },
    );
}

/// Independent partial sums of a dot product: enough to fill the widest registers.
const LANES: usize = 16;

/// Σ xᵢ yᵢ in twice the precision.
pub(crate) fn dot(arch: pulp::Arch, x: Column<'_>, y: Column<'_>) -> Double {
    arch.dispatch(
        #[inline(always)]
        || {
            let rows = x.hi.len();
            let (x_hi, x_lo, y_hi, y_lo) = (&x.hi[..rows], &x.lo[..rows], &y.hi[..rows], &y.lo[..rows]);
            let (mut high, mut low) = ([0.0; LANES], [0.0; LANES]);
            let whole = rows - rows % LANES;
            let mut row = 0;
            while row < whole {
                let (a, b) = (&x_hi[row..row + LANES], &x_lo[row..row + LANES]);
                let (c, d) = (&y_hi[row..row + LANES], &y_lo[row..row + LANES]);
                for lane in 0..LANES {
                    let (p, e) = two_product(a[lane], c[lane]);
                    let e = a[lane].mul_add(d[lane], b[lane].mul_add(c[lane], e));
                    let (s, t) = two_sum(high[lane], p);
                    high[lane] = s;
                    low[lane] += t + e;
                }
                row += LANES;
            }
            let mut total = Double::ZERO;
            for row in whole..rows {
                total += Double { hi: x_hi[row], lo: x_lo[row] } * Double { hi: y_hi[row], lo: y_lo[row] };
            }
            for lane in 0..LANES {
                total += Double::sum(high[lane], low[lane]);
            }
            total
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sum_that_floats_lose_is_kept() {
        let total = Double::from(1e16) + Double::from(1.0) + Double::from(-1e16);
        assert_eq!(total.to_f64(), 1.0);
    }

    #[test]
    fn products_and_quotients_have_thirty_digits() {
        let third = Double::from(1.0).divide(Double::from(3.0));
        let rest = third * 3.0 - Double::from(1.0);
        assert!(rest.to_f64().abs() < 1e-31, "{rest:?}");
        let square = third * third;
        let rest = square * 9.0 - Double::from(1.0);
        assert!(rest.to_f64().abs() < 1e-30, "{rest:?}");
    }

    #[test]
    fn the_vector_loops_agree_with_the_scalar_ones() {
        let arch = pulp::Arch::new();
        let rows = 53;
        let values = |seed: f64| -> Vec<f64> { (0..rows).map(|row| (f64::from(row) * seed).sin()).collect() };
        let (x, y) = (values(1.3), values(0.7));
        let (mut hi, mut lo) = (vec![0.0; x.len()], vec![0.0; x.len()]);
        centre(arch, &x, None, 0.1, 4.0, ColumnMut { hi: &mut hi, lo: &mut lo });
        for row in 0..x.len() {
            let exact = (Double::from(x[row]) - Double::from(0.1)) * 4.0;
            assert_eq!((hi[row], lo[row]), (exact.hi, exact.lo));
        }
        let zeros = vec![0.0; x.len()];
        let product = dot(arch, Column { hi: &hi, lo: &lo }, Column { hi: &y, lo: &zeros });
        let mut expected = Double::ZERO;
        for row in 0..x.len() {
            expected += Double { hi: hi[row], lo: lo[row] } * y[row];
        }
        assert!((product - expected).to_f64().abs() < 1e-29);
        let factor = Double { hi: 0.3, lo: 1e-17 };
        let (mut out_hi, mut out_lo) = (y.clone(), zeros.clone());
        axpy(arch, factor, Column { hi: &hi, lo: &lo }, ColumnMut { hi: &mut out_hi, lo: &mut out_lo });
        for row in 0..x.len() {
            let expected = Double::from(y[row]) + factor * Double { hi: hi[row], lo: lo[row] };
            assert!((expected - Double { hi: out_hi[row], lo: out_lo[row] }).to_f64().abs() < 1e-30);
        }
    }
}
