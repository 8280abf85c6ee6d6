//! Pearson's chi-square test of counts against probabilities.

/// The least expected count of a cell of the chi-square test; smaller cells are merged.
const LEAST_EXPECTED: f64 = 10.0;

/// Returns the probability that counts drawn from `probabilities` (which sum to 1) lie at least as far from them as
/// `counts` do. A count in a cell of probability 0 gives 0.
pub fn p_value(counts: &[u64], probabilities: &[f64]) -> f64 {
    assert_eq!(counts.len(), probabilities.len());
    let total = counts.iter().sum::<u64>() as f64;
    let mut cells: Vec<(f64, f64)> =
        counts.iter().zip(probabilities).map(|(&count, p)| (count as f64, p * total)).collect();
    if cells.iter().any(|&(count, expected)| count > 0.0 && expected == 0.0) {
        return 0.0;
    }
    cells.sort_by(|a, b| a.1.total_cmp(&b.1));
    let (mut statistic, mut merged, mut degrees) = (0.0, (0.0, 0.0), -1.0);
    for (count, expected) in cells {
        merged = (merged.0 + count, merged.1 + expected);
        if merged.1 >= LEAST_EXPECTED {
            statistic += (merged.0 - merged.1).powi(2) / merged.1;
            degrees += 1.0;
            merged = (0.0, 0.0);
        }
    }
    assert!(degrees > 0.0, "too few runs for a test");
    upper_gamma(degrees / 2.0, statistic / 2.0)
}

/// Returns the regularised upper incomplete gamma function Q(a, x): a series below a + 1, a continued fraction above
/// (DLMF 8.7.1, 8.9.2).
fn upper_gamma(a: f64, x: f64) -> f64 {
    let front = (a * x.ln() - x - ln_gamma(a)).exp();
    if x < a + 1.0 {
        let (mut term, mut sum) = (1.0 / a, 1.0 / a);
        for n in 1..10_000 {
            term *= x / (a + f64::from(n));
            sum += term;
        }
        return 1.0 - front * sum;
    }
    // Lentz's method evaluates the continued fraction.
    let mut b = x + 1.0 - a;
    let (mut c, mut d) = (f64::MAX, 1.0 / b);
    let mut fraction = d;
    for n in 1..10_000 {
        let numerator = -f64::from(n) * (f64::from(n) - a);
        b += 2.0;
        d = 1.0 / (numerator * d + b);
        c = b + numerator / c;
        fraction *= c * d;
    }
    front * fraction
}

/// Returns ln Γ(a) by Stirling's series above 10, and by the recurrence below.
fn ln_gamma(a: f64) -> f64 {
    if a < 10.0 {
        return ln_gamma(a + 1.0) - a.ln();
    }
    let tail = 1.0 / (12.0 * a) - 1.0 / (360.0 * a.powi(3)) + 1.0 / (1260.0 * a.powi(5));
    (a - 0.5) * a.ln() - a + (2.0 * std::f64::consts::PI).ln() / 2.0 + tail
}

#[test]
fn gamma_known_values() {
    // The expected values come from Q(1, x) = exp(−x), Q(1/2, x) = erfc(√x), and quantiles of chi-square from tables.
    for (a, x, expected) in [
        (1.0, 0.5, (-0.5f64).exp()),
        (1.0, 20.0, (-20.0f64).exp()),
        (0.5, 0.25, 0.479_500_122_186_953_5),
        (0.5, 4.0, 0.004_677_734_981_047_266),
        (50.0, 124.342_113_4 / 2.0, 0.05),
        (500.0, 1_074.679_449 / 2.0, 0.05),
    ] {
        let found = upper_gamma(a, x);
        assert!(
            (found - expected).abs() < 1e-7 * expected.max(0.01),
            "Q({a}, {x}) = {found}, not {expected}"
        );
    }
}
