//! Complex numbers of about 31 decimal digits: each part is the sum of two doubles.

use std::ops::{Add, Mul, Neg, Sub};

/// `hi + lo`, with `|lo|` at most half a unit in the last place of `hi`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Double {
    hi: f64,
    lo: f64,
}

impl Double {
    pub(super) const ZERO: Self = Self { hi: 0.0, lo: 0.0 };
    /// The circle's number, to twice the digits of a double.
    pub(super) const PI: Self = Self { hi: std::f64::consts::PI, lo: 1.224_646_799_147_353_2e-16 };

    pub(super) fn new(value: f64) -> Self {
        Self { hi: value, lo: 0.0 }
    }

    /// The exact sum of two doubles.
    fn sum(a: f64, b: f64) -> Self {
        let hi = a + b;
        let part = hi - a;
        Self { hi, lo: (a - (hi - part)) + (b - part) }
    }

    pub(super) fn approximate(self) -> f64 {
        self.hi
    }

    pub(super) fn over(self, divisor: Self) -> Self {
        let first = self.hi / divisor.hi;
        let rest = self - divisor * Self::new(first);
        let second = rest.hi / divisor.hi;
        let third = (rest - divisor * Self::new(second)).hi / divisor.hi;
        Self::sum(first, second) + Self::new(third)
    }

    /// One step of Newton's method from the double's root; 0 for what is below 0.
    fn root(self) -> Self {
        if self.hi <= 0.0 {
            return Self::ZERO;
        }
        let first = self.hi.sqrt();
        let rest = self - Self::new(first) * Self::new(first);
        Self::sum(first, rest.hi / (2.0 * first))
    }
}

impl Add for Double {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        let (high, low) = (Self::sum(self.hi, other.hi), Self::sum(self.lo, other.lo));
        let once = Self::sum(high.hi, high.lo + low.hi);
        Self::sum(once.hi, once.lo + low.lo)
    }
}

impl Neg for Double {
    type Output = Self;

    fn neg(self) -> Self {
        Self { hi: -self.hi, lo: -self.lo }
    }
}

impl Sub for Double {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        self + -other
    }
}

impl Mul for Double {
    type Output = Self;

    fn mul(self, other: Self) -> Self {
        let hi = self.hi * other.hi;
        let lo = self.hi.mul_add(other.hi, -hi);
        Self::sum(hi, lo + self.hi * other.lo + self.lo * other.hi)
    }
}

/// A complex number.
#[derive(Debug, Clone, Copy)]
pub(super) struct Complex {
    pub(super) re: Double,
    pub(super) im: Double,
}

impl Complex {
    pub(super) const ONE: Self = Self { re: Double { hi: 1.0, lo: 0.0 }, im: Double::ZERO };

    pub(super) fn real(re: Double) -> Self {
        Self { re, im: Double::ZERO }
    }

    pub(super) fn from_parts(re: f64, im: f64) -> Self {
        Self { re: Double::new(re), im: Double::new(im) }
    }

    pub(super) fn is_finite(self) -> bool {
        self.re.hi.is_finite() && self.im.hi.is_finite()
    }

    /// `|re| + |im|`.
    pub(super) fn size(self) -> f64 {
        self.re.hi.abs() + self.im.hi.abs()
    }

    fn norm(self) -> Double {
        self.re * self.re + self.im * self.im
    }

    pub(super) fn over(self, divisor: Self) -> Self {
        let norm = divisor.norm();
        let product = self * Self { re: divisor.re, im: -divisor.im };
        Self { re: product.re.over(norm), im: product.im.over(norm) }
    }

    /// The root whose real part is not negative.
    pub(super) fn root(self) -> Self {
        let half = Double::new(0.5);
        let length = self.norm().root();
        if self.re.hi >= 0.0 {
            let re = ((length + self.re) * half).root();
            let im = if re.hi == 0.0 { Double::ZERO } else { (self.im * half).over(re) };
            return Self { re, im };
        }
        let im = ((length - self.re) * half).root();
        let im = if self.im.hi < 0.0 { -im } else { im };
        Self { re: (self.im * half).over(im), im }
    }

    /// `self^exponent` by squaring.
    pub(super) fn power(self, exponent: i32) -> Self {
        let (mut result, mut square) = (Self::ONE, self);
        let mut left = exponent.unsigned_abs();
        while left > 0 {
            if left & 1 == 1 {
                result = result * square;
            }
            square = square * square;
            left >>= 1;
        }
        if exponent < 0 { Self::ONE.over(result) } else { result }
    }
}

impl Add for Complex {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { re: self.re + other.re, im: self.im + other.im }
    }
}

impl Neg for Complex {
    type Output = Self;

    fn neg(self) -> Self {
        Self { re: -self.re, im: -self.im }
    }
}

impl Sub for Complex {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        self + -other
    }
}

impl Mul for Complex {
    type Output = Self;

    fn mul(self, other: Self) -> Self {
        Self {
            re: self.re * other.re - self.im * other.im,
            im: self.re * other.im + self.im * other.re,
        }
    }
}
