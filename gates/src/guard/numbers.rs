//! Logarithms that stay finite.

/// ln(eᵃ + eᵇ), for finite a and b.
pub(super) fn ln_add(a: f64, b: f64) -> f64 {
    let (low, high) = if a < b { (a, b) } else { (b, a) };
    high + (low - high).exp().ln_1p()
}

/// eˣ, at most the largest number there is: an e-value is written as JSON, which has no infinity.
pub(super) fn exp(x: f64) -> f64 {
    x.exp().min(f64::MAX)
}
