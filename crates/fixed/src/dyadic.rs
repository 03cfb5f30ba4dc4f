/// A number `mantissa · 2^−frac`, exactly; the mantissa is odd, or 0 with `frac` 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dyadic {
    /// The odd part.
    pub mantissa: i64,
    /// Fraction bits; negative for multiples of two.
    pub frac: i32,
}

impl Dyadic {
    /// One.
    pub const ONE: Dyadic = Dyadic { mantissa: 1, frac: 0 };

    /// `mantissa · 2^−frac` in its normal form.
    pub fn new(mantissa: i64, frac: i32) -> Dyadic {
        if mantissa == 0 {
            return Dyadic { mantissa: 0, frac: 0 };
        }
        let zeros = mantissa.trailing_zeros();
        Dyadic { mantissa: mantissa >> zeros, frac: frac.saturating_sub(zeros as i32) }
    }

    /// The number that the bits of an IEEE single stand for; `None` for NaN and infinities.
    pub fn of_bits(bits: u32) -> Option<Dyadic> {
        let (exponent, fraction) = ((bits >> 23 & 0xff) as i32, i64::from(bits & 0x7f_ffff));
        let magnitude = match exponent {
            255 => return None,
            0 => Dyadic::new(fraction, 149),
            e => Dyadic::new(fraction | 1 << 23, 150 - e),
        };
        let mantissa = if bits >> 31 == 1 { -magnitude.mantissa } else { magnitude.mantissa };
        Some(Dyadic { mantissa, ..magnitude })
    }

    /// The product, where its mantissa fits.
    pub fn times(self, other: Dyadic) -> Option<Dyadic> {
        Some(Dyadic::new(self.mantissa.checked_mul(other.mantissa)?, self.frac.checked_add(other.frac)?))
    }

    /// How many units of `unit` it is, where that is a whole number that fits.
    pub fn in_units(self, unit: Dyadic) -> Option<i64> {
        if self.mantissa == 0 {
            return Some(0);
        }
        if unit.mantissa == 0 || self.mantissa % unit.mantissa != 0 {
            return None;
        }
        let shift = unit.frac.checked_sub(self.frac)?;
        shifted(self.mantissa / unit.mantissa, u32::try_from(shift).ok()?)
    }

    /// Whether it is a power of two.
    pub fn is_power_of_two(self) -> bool {
        self.mantissa == 1
    }

    /// The bits of the mantissa.
    pub fn bits(self) -> u32 {
        64 - self.mantissa.unsigned_abs().leading_zeros()
    }
}

/// `x · 2^by`, where that fits.
pub(crate) fn shifted(x: i64, by: u32) -> Option<i64> {
    let y = x.checked_shl(by).filter(|_| by < 63)?;
    (y >> by == x).then_some(y)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_floats_apart_exactly() {
        let of = |x: f32| Dyadic::of_bits(x.to_bits());
        assert_eq!(of(0.375), Some(Dyadic { mantissa: 3, frac: 3 }));
        assert_eq!(of(-96.0), Some(Dyadic { mantissa: -3, frac: -5 }));
        assert_eq!(of(0.0), Some(Dyadic { mantissa: 0, frac: 0 }));
        assert_eq!(of(f32::from_bits(1)), Some(Dyadic { mantissa: 1, frac: 149 }));
        assert_eq!((of(f32::NAN), of(f32::INFINITY)), (None, None));
        for x in [1.0f32, 0.1, 3.7e-5, 1e30, f32::MIN_POSITIVE] {
            let d = of(x).unwrap();
            assert_eq!(d.mantissa as f64 * 2f64.powi(-d.frac), f64::from(x));
        }
    }

    #[test]
    fn counts_whole_units_only() {
        let six = Dyadic::new(6, 0);
        assert_eq!(six.in_units(Dyadic::new(3, 4)), Some(32));
        assert_eq!(six.in_units(Dyadic::new(1, -2)), None, "a unit of four");
        assert_eq!(six.in_units(Dyadic::new(5, 0)), None);
        assert_eq!(six.in_units(Dyadic::new(1, 70)), None, "too many of them");
        assert_eq!(Dyadic::new(i64::MAX, 0).times(six), None);
    }
}
