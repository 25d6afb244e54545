//! Intervals for people to read. Nothing is decided by them, but that the burn takes a rate's upper end.

/// The 97.5 % point of the normal distribution: 95 % lie between it and its negative.
const Z: f64 = 1.959_963_984_540_054;

/// Wilson's 95 % interval of a rate. Of nothing: from 0 to 1.
#[must_use]
pub fn wilson(hit: f64, n: f64) -> (f64, f64) {
    if n <= 0.0 {
        return (0.0, 1.0);
    }
    let p = (hit / n).clamp(0.0, 1.0);
    let z2 = Z * Z / n;
    let middle = p + z2 / 2.0;
    let half = Z * (p * (1.0 - p) / n + z2 / (4.0 * n)).sqrt();
    let whole = 1.0 + z2;
    ((middle - half).max(0.0) / whole, ((middle + half) / whole).min(1.0))
}
