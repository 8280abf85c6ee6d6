//! Nodes of candle's graph whose value and backward pass are given.
//!
//! Candle records every operation from a variable to the loss, and its backward pass computes the gradient of every
//! operand, even frozen ones. Here a function computes its value from detached tensors, with any operations, and
//! enters the graph as one node with a given backward pass. Frozen weights then cost nothing, and values that both
//! passes need are kept instead of computed again.

use std::sync::Mutex;

use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Storage, Tensor,
};

/// A node of candle's graph: its value, until the graph takes it, and its backward pass.
struct Node<F> {
    name: &'static str,
    value: Mutex<Option<Tensor>>,
    backward: F,
}

/// Adds a node with one operand to the graph. `backward` maps the gradient of the value to the gradient of the operand.
pub fn unary<F>(name: &'static str, x: &Tensor, value: Tensor, backward: F) -> Result<Tensor>
where
    F: Fn(&Tensor) -> Result<Tensor> + Send + Sync + 'static,
{
    if !x.track_op() {
        return Ok(value);
    }
    x.apply_op1(Node::new(name, value, backward))
}

/// Adds a node with two operands to the graph; `backward` returns their gradients in order.
pub fn binary<F>(name: &'static str, [x, y]: [&Tensor; 2], value: Tensor, backward: F) -> Result<Tensor>
where
    F: Fn(&Tensor) -> Result<[Tensor; 2]> + Send + Sync + 'static,
{
    if !x.track_op() && !y.track_op() {
        return Ok(value);
    }
    x.apply_op2(y, Node::new(name, value, backward))
}

/// Adds a node with three operands to the graph; `backward` returns their gradients in order.
pub fn ternary<F>(name: &'static str, [x, y, z]: [&Tensor; 3], value: Tensor, backward: F) -> Result<Tensor>
where
    F: Fn(&Tensor) -> Result<[Tensor; 3]> + Send + Sync + 'static,
{
    if ![x, y, z].into_iter().any(Tensor::track_op) {
        return Ok(value);
    }
    x.apply_op3(y, z, Node::new(name, value, backward))
}

impl<F> Node<F> {
    fn new(name: &'static str, value: Tensor, backward: F) -> Self {
        Self { name, value: Mutex::new(Some(value)), backward }
    }

    fn take(&self) -> Result<Tensor> {
        let value = self.value.lock().ok().and_then(|mut value| value.take());
        let value = value.ok_or_else(|| candle_core::Error::msg("a node is evaluated once"))?;
        // Candle's graph takes a tensor's whole storage, so a value that is only a part of its storage is
        // copied.
        let whole = value.elem_count();
        let compact = value.is_contiguous()
            && matches!(&*value.storage_and_layout().0, Storage::Cpu(x) if cpu_len(x) == whole);
        if compact { Ok(value) } else { value.force_contiguous() }
    }

    fn cpu(&self) -> Result<(CpuStorage, Shape)> {
        let value = self.take()?;
        let (storage, _) = value.storage_and_layout();
        match &*storage {
            Storage::Cpu(cpu) => Ok((cpu.clone(), value.shape().clone())),
            _ => Err(candle_core::Error::msg("operands on two devices")),
        }
    }

    fn cuda(&self) -> Result<(CudaStorage, Shape)> {
        let value = self.take()?;
        let (storage, layout) = value.storage_and_layout();
        match storage.try_clone(layout)? {
            Storage::Cuda(cuda) => Ok((cuda, value.shape().clone())),
            _ => Err(candle_core::Error::msg("operands on two devices")),
        }
    }
}

fn cpu_len(storage: &CpuStorage) -> usize {
    match storage {
        CpuStorage::F32(x) => x.len(),
        CpuStorage::F64(x) => x.len(),
        CpuStorage::BF16(x) => x.len(),
        CpuStorage::F16(x) => x.len(),
        // A value of any other element type is copied, as if it did not fill its storage.
        _ => usize::MAX,
    }
}

impl<F: Fn(&Tensor) -> Result<Tensor>> CustomOp1 for Node<F> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.cpu()
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        self.cuda()
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        (self.backward)(gradient).map(Some)
    }
}

impl<F: Fn(&Tensor) -> Result<[Tensor; 2]>> CustomOp2 for Node<F> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.cpu()
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.cuda()
    }

    fn bwd(
        &self,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [x, y] = (self.backward)(gradient)?;
        Ok((Some(x), Some(y)))
    }
}

impl<F: Fn(&Tensor) -> Result<[Tensor; 3]>> CustomOp3 for Node<F> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.cpu()
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.cuda()
    }

    fn bwd(
        &self,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [x, y, z] = (self.backward)(gradient)?;
        Ok((Some(x), Some(y), Some(z)))
    }
}
