//! Cross-entropy over the vocabulary, without storing the logits of all rows.
//!
//! Rows are processed in chunks: logits, softmax and the gradient of the logits exist for one chunk at a time, and
//! the gradients of the operands are complete when the loss is. The vocabulary product is the largest of a step, and
//! nothing else needs its result.

use std::ops::Range;
use std::sync::Mutex;

use candle_core::{CpuStorage, D, DType, Device, InplaceOp1, Layout, Result, Tensor};
use rayon::prelude::*;

use crate::graph;
use crate::ops::{exp, product};

/// Maximum number of logits that are in memory at a time.
const CHUNK_ELEMENTS: usize = 1 << 23;

/// The tokens that rows should predict, with a weight for each.
#[derive(Clone, Debug, Default)]
pub struct Labels {
    /// Label of each row, an id below the vocabulary's size.
    pub ids: Vec<u32>,
    /// Weight of each row in the loss.
    pub weights: Vec<f32>,
}

/// The prediction of one row of logits.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Prediction {
    /// Cross-entropy of the row: −ln of the label's probability.
    pub loss: f64,
    /// The token with the largest logit; ties go to the lowest id.
    pub token: u32,
    /// The probability of the predicted `token`.
    pub confidence: f32,
}

/// Rows and the matrix that multiplies them; the logits are the sum of x · wᵀ over all factors.
#[derive(Clone, Copy, Debug)]
pub struct Factor<'a> {
    /// The rows, `[rows, k]`.
    pub x: &'a Tensor,
    /// The matrix, `[vocab, k]`.
    pub w: &'a Tensor,
    /// The type that operands of the product are rounded to.
    pub compute: DType,
}

impl<'a> Factor<'a> {
    /// Returns a factor whose product is computed in the matrix's own type.
    pub fn new(x: &'a Tensor, w: &'a Tensor) -> Self {
        Self { x, w, compute: w.dtype() }
    }
}

/// A factor without its part of the gradient graph, and with its matrix rounded.
struct Detached {
    x: Tensor,
    w: Tensor,
    compute: DType,
}

impl Detached {
    fn all(factors: &[Factor<'_>]) -> Result<Vec<Self>> {
        let detached = |factor: &Factor<'_>| {
            let w = factor.w.detach().to_dtype(factor.compute)?;
            Ok(Self { x: factor.x.detach(), w, compute: factor.compute })
        };
        factors.iter().map(detached).collect()
    }
}

/// Returns the weighted sum of the rows' cross-entropies, and each row's prediction.
///
/// `frozen`'s matrix takes no gradient; its rows do, and so do the rows and the matrix of `trained`.
///
/// # Errors
/// Candle's errors: mismatched shapes, out of memory; also if there is no factor, or a row has no label within the
/// vocabulary.
pub fn cross_entropy(
    frozen: Option<Factor<'_>>,
    trained: Option<Factor<'_>>,
    labels: &Labels,
) -> Result<(Tensor, Vec<Prediction>)> {
    let factors: Vec<Factor<'_>> = frozen.into_iter().chain(trained).collect();
    let Some(first) = factors.first() else {
        return Err(candle_core::Error::msg("a loss without a factor"));
    };
    let (rows, device, dtype) = (first.x.dim(0)?, first.x.device().clone(), first.x.dtype());
    check(labels, rows, first.w.dim(0)?)?;
    let detached = Detached::all(&factors)?;

    let mut predictions = Vec::with_capacity(rows);
    let mut x_gradients: Vec<Vec<Tensor>> = vec![Vec::new(); factors.len()];
    let mut w_gradient = None;
    for chunk in chunks(rows, first.w.dim(0)?) {
        let (first, len) = (chunk.start, chunk.len());
        let logits = logits(&detached, chunk.clone())?;
        let labels =
            Labels { ids: labels.ids[chunk.clone()].to_vec(), weights: labels.weights[chunk].to_vec() };
        let (gradient, chunk_predictions) = logits_gradient(logits, labels)?;
        predictions.extend(chunk_predictions);
        for (gradients, factor) in x_gradients.iter_mut().zip(&detached) {
            gradients.push(product(&gradient, &factor.w, factor.compute)?);
        }
        if trained.is_some()
            && let Some(Detached { x, compute, .. }) = detached.last()
        {
            let part = product(&gradient.t()?, &x.narrow(0, first, len)?, *compute)?;
            w_gradient = Some(match w_gradient {
                None => part,
                Some(sum) => (sum + part)?,
            });
        }
    }
    let loss: f64 =
        predictions.iter().zip(&labels.weights).map(|(p, &weight)| p.loss * f64::from(weight)).sum();
    let loss = Tensor::new(loss, &Device::Cpu)?.to_dtype(dtype)?.to_device(&device)?;

    let x_gradients: Vec<Tensor> =
        x_gradients.iter().map(|parts| Tensor::cat(parts, 0)).collect::<Result<_>>()?;
    let scaled = |x: &Tensor, gradient: &Tensor| x.broadcast_mul(gradient);
    let loss = match (frozen, trained, w_gradient) {
        (Some(frozen), Some(trained), Some(w)) => {
            let [x0, x1] = [x_gradients[0].clone(), x_gradients[1].clone()];
            graph::ternary("cross-entropy", [frozen.x, trained.x, trained.w], loss, move |g| {
                Ok([scaled(&x0, g)?, scaled(&x1, g)?, scaled(&w, g)?])
            })?
        }
        (None, Some(trained), Some(w)) => {
            let x = x_gradients[0].clone();
            graph::binary("cross-entropy", [trained.x, trained.w], loss, move |g| {
                Ok([scaled(&x, g)?, scaled(&w, g)?])
            })?
        }
        (Some(frozen), ..) => {
            let x = x_gradients[0].clone();
            graph::unary("cross-entropy", frozen.x, loss, move |g| scaled(&x, g))?
        }
        // Without rows, the loss is 0 and takes no gradient.
        _ => loss,
    };
    Ok((loss, predictions))
}

/// Returns the most probable token of each row; without labels, the `loss` of each prediction is 0.
///
/// # Errors
/// Candle's errors: mismatched shapes, out of memory.
pub fn predict(factors: &[Factor<'_>]) -> Result<Vec<Prediction>> {
    let mut predictions = Vec::new();
    logits_in_chunks(factors, |logits| {
        let rows = logits.dim(0)?;
        let (_, found) = logits_gradient(logits, Labels { ids: vec![0; rows], weights: vec![0.0; rows] })?;
        predictions.extend(found.into_iter().map(|prediction| Prediction { loss: 0.0, ..prediction }));
        Ok(())
    })?;
    Ok(predictions)
}

/// Returns the weighted sum of the cross-entropies of rows of logits `[rows, ids]`, and each row's prediction. Gradients
/// flow to the logits.
///
/// # Errors
/// Candle's errors: mismatched shapes, out of memory; also if a row has no label among its ids.
pub fn row_cross_entropy(logits: &Tensor, labels: &Labels) -> Result<(Tensor, Vec<Prediction>)> {
    let (rows, ids) = logits.dims2()?;
    check(labels, rows, ids)?;
    let (gradient, predictions) = logits_gradient(logits.detach().force_contiguous()?, labels.clone())?;
    let loss: f64 =
        predictions.iter().zip(&labels.weights).map(|(p, &weight)| p.loss * f64::from(weight)).sum();
    let loss = Tensor::new(loss, &Device::Cpu)?.to_dtype(logits.dtype())?.to_device(logits.device())?;
    let loss = graph::unary("cross-entropy of rows", logits, loss, move |g| gradient.broadcast_mul(g))?;
    Ok((loss, predictions))
}

/// Computes the logits of some rows at a time, and hands them to `take`.
///
/// # Errors
/// Candle's errors: mismatched shapes, out of memory; errors of `take`.
pub fn logits_in_chunks(factors: &[Factor<'_>], mut take: impl FnMut(Tensor) -> Result<()>) -> Result<()> {
    let Some(first) = factors.first() else { return Ok(()) };
    let detached = Detached::all(factors)?;
    chunks(first.x.dim(0)?, first.w.dim(0)?).try_for_each(|chunk| take(logits(&detached, chunk)?))
}

/// Checks that each row has one label and one weight, and that every label is within the vocabulary.
fn check(labels: &Labels, rows: usize, vocab: usize) -> Result<()> {
    let Labels { ids, weights } = labels;
    if ids.len() != rows || weights.len() != rows {
        let found = format!("{} labels and {} weights", ids.len(), weights.len());
        return Err(candle_core::Error::msg(format!("{found} for {rows} rows")));
    }
    match ids.iter().find(|&&id| id as usize >= vocab) {
        Some(id) => Err(candle_core::Error::msg(format!("label {id}, and the vocabulary has {vocab} ids"))),
        None => Ok(()),
    }
}

fn chunks(rows: usize, vocab: usize) -> impl Iterator<Item = Range<usize>> {
    let step = (CHUNK_ELEMENTS / vocab.max(1)).max(1);
    (0..rows).step_by(step).map(move |first| first..(first + step).min(rows))
}

fn logits(factors: &[Detached], rows: Range<usize>) -> Result<Tensor> {
    let part = |Detached { x, w, compute }: &Detached| {
        product(&x.narrow(0, rows.start, rows.len())?, &w.t()?, *compute)
    };
    let [first, rest @ ..] = factors else { return Err(candle_core::Error::msg("logits without a factor")) };
    rest.iter().try_fold(part(first)?, |sum, factor| sum + part(factor)?)
}

/// Turns logits `[rows, vocab]` into their gradient, weight · (softmax − one-hot), and the predictions.
fn logits_gradient(logits: Tensor, labels: Labels) -> Result<(Tensor, Vec<Prediction>)> {
    if logits.device().is_cpu() && logits.dtype() == DType::F32 {
        let predictions = Mutex::new(vec![Prediction::default(); labels.ids.len()]);
        let op = InPlace { labels, predictions };
        logits.inplace_op1(&op)?;
        let predictions = op.predictions.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
        return Ok((logits, predictions));
    }
    let (rows, vocab) = logits.dims2()?;
    let largest = logits.max_keepdim(D::Minus1)?;
    let exponentials = logits.broadcast_sub(&largest)?.exp()?;
    let sums = exponentials.sum_keepdim(D::Minus1)?;
    let probabilities = exponentials.broadcast_div(&sums)?;
    let ids = Tensor::from_vec(labels.ids.clone(), (rows, 1), &Device::Cpu)?.to_device(logits.device())?;
    let weights = Tensor::from_vec(labels.weights, (rows, 1), &Device::Cpu)?
        .to_dtype(logits.dtype())?
        .to_device(logits.device())?;
    let host = |x: Tensor| x.flatten_all()?.to_dtype(DType::F64)?.to_vec1::<f64>();
    let losses = host(((sums.log()? + &largest)? - logits.gather(&ids, 1)?)?)?;
    let confidences = host(probabilities.max(D::Minus1)?)?;
    let tokens = logits.argmax(D::Minus1)?.to_vec1::<u32>()?;
    let one_hot = Tensor::zeros((rows, vocab), logits.dtype(), logits.device())?.scatter_add(
        &ids,
        &ids.ones_like()?.to_dtype(logits.dtype())?,
        1,
    )?;
    let gradient = (probabilities - one_hot)?.broadcast_mul(&weights)?;
    let predictions = losses
        .into_iter()
        .zip(tokens)
        .zip(confidences)
        .map(|((loss, token), confidence)| Prediction { loss, token, confidence: confidence as f32 });
    Ok((gradient, predictions.collect()))
}

/// The in-place form of [`logits_gradient`], which overwrites the logits' memory with their gradient.
struct InPlace {
    labels: Labels,
    predictions: Mutex<Vec<Prediction>>,
}

impl InplaceOp1 for InPlace {
    fn name(&self) -> &'static str {
        "cross-entropy"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let (CpuStorage::F32(logits), Some((first, last))) = (storage, layout.contiguous_offsets()) else {
            return Err(candle_core::Error::msg("expected contiguous f32 logits"));
        };
        let vocab = layout.dims().last().copied().unwrap_or(1);
        let mut predictions = self.predictions.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let labels = self.labels.ids.par_iter().zip(&self.labels.weights);
        logits[first..last].par_chunks_exact_mut(vocab).zip(predictions.par_iter_mut()).zip(labels).for_each(
            |((row, prediction), (&label, &weight))| *prediction = gradient_row(row, label as usize, weight),
        );
        Ok(())
    }
}

fn gradient_row(row: &mut [f32], label: usize, weight: f32) -> Prediction {
    let largest = row.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b));
    let token = row.iter().position(|&x| x == largest).unwrap_or(0) as u32;
    let of_label = row[label];
    // Sixteen separate sums, instead of one, let the compiler vectorise the loop.
    let mut sums = [0f32; 16];
    let mut parts = row.chunks_exact_mut(16);
    for part in &mut parts {
        for (x, sum) in part.iter_mut().zip(&mut sums) {
            *x = exp(*x - largest);
            *sum += *x;
        }
    }
    let mut sum: f32 = sums.iter().sum();
    for x in parts.into_remainder() {
        *x = exp(*x - largest);
        sum += *x;
    }
    let scale = weight / sum;
    row.iter_mut().for_each(|x| *x *= scale);
    row[label] -= weight;
    // NaN among the logits must make the loss NaN, so that training stops.
    let loss = if largest.is_nan() || sum.is_nan() { f32::NAN } else { sum.ln() + largest - of_label };
    Prediction { loss: f64::from(loss), token, confidence: 1.0 / sum }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_that_do_not_fit_are_refused() -> Result<()> {
        let (x, w) = (
            Tensor::ones((2, 3), DType::F32, &Device::Cpu)?,
            Tensor::ones((5, 3), DType::F32, &Device::Cpu)?,
        );
        let loss = |ids: &[u32], weights: &[f32]| {
            let labels = Labels { ids: ids.to_vec(), weights: weights.to_vec() };
            cross_entropy(Some(Factor::new(&x, &w)), None, &labels)
        };
        assert!(loss(&[0, 4], &[0.5, 0.5]).is_ok());
        let message =
            |ids: &[u32], weights: &[f32]| loss(ids, weights).map(|_| ()).map_err(|e| e.to_string());
        assert!(message(&[0], &[0.5, 0.5]).is_err_and(|e| e.contains("1 labels and 2 weights for 2 rows")));
        assert!(message(&[0, 1], &[0.5]).is_err_and(|e| e.contains("2 labels and 1 weights for 2 rows")));
        assert!(message(&[0, 5], &[0.5, 0.5]).is_err_and(|e| e.contains("label 5")));
        Ok(())
    }
}
