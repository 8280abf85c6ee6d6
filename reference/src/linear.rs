//! Linear layers and vector addition.

use crate::float::Float;

/// A linear layer, y = W x + b.
#[derive(Clone, Debug, PartialEq)]
pub struct Linear<F> {
    /// Weight W, row-major `[out, in]`.
    pub weight: Vec<F>,
    /// Bias b, `[out]`.
    pub bias: Option<Vec<F>>,
    /// Number of columns of the weight, which is the length of x.
    pub inputs: usize,
}

impl<F: Float> Linear<F> {
    /// Creates a layer without bias from its row-major weight [out, `inputs`].
    pub fn new(weight: Vec<F>, inputs: usize) -> Self {
        assert_eq!(weight.len() % inputs, 0, "the weight is not a matrix of {inputs} columns");
        Self { weight, bias: None, inputs }
    }

    /// Returns row `index` of the weight, `[in]`.
    pub fn row(&self, index: usize) -> &[F] {
        &self.weight[index * self.inputs..][..self.inputs]
    }

    /// Returns W `x` + b, from `[in]` to `[out]`.
    pub fn apply(&self, x: &[F]) -> Vec<F> {
        assert_eq!(x.len(), self.inputs);
        let mut y: Vec<F> = self.weight.chunks(self.inputs).map(|row| dot(row, x)).collect();
        if let Some(bias) = &self.bias {
            y = add(&y, bias);
        }
        y
    }
}

/// Returns the dot product Σ_i `x[i]` · `y[i]`, summed in order.
pub fn dot<F: Float>(x: &[F], y: &[F]) -> F {
    assert_eq!(x.len(), y.len());
    x.iter().zip(y).map(|(&x, &y)| x * y).sum()
}

/// Returns the sum `x` + `y`, element by element.
pub fn add<F: Float>(x: &[F], y: &[F]) -> Vec<F> {
    assert_eq!(x.len(), y.len());
    x.iter().zip(y).map(|(&x, &y)| x + y).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_two_by_three_layer() {
        let mut layer = Linear::new(vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 3);
        assert_eq!(layer.apply(&[1.0, 0.0, -1.0]), [-2.0, -2.0]);
        layer.bias = Some(vec![10.0, 20.0]);
        assert_eq!(layer.apply(&[1.0, 1.0, 1.0]), [16.0, 35.0]);
    }
}
