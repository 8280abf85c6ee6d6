//! The frequencies of a rotation, on the device.

use crate::device::{DeviceError, Rope};
use crate::runtime::Runtime;

/// The frequencies of the rotation that was used last.
#[derive(Debug)]
pub(super) struct Frequencies<R: Runtime>(Option<(Rope, R::Memory<f32>)>);

impl<R: Runtime> Default for Frequencies<R> {
    fn default() -> Self {
        Self(None)
    }
}

impl<R: Runtime> Frequencies<R> {
    /// Returns the frequencies of `rope`, uploaded if the device holds the frequencies of another rotation.
    pub(super) fn of(
        &mut self,
        (runtime, stream): (&R, &R::Stream),
        rope: &Rope,
    ) -> Result<&R::Memory<f32>, DeviceError> {
        let (_, inv_freq) = match self.0.take().filter(|(known, _)| known == rope) {
            Some(same) => self.0.insert(same),
            None => {
                let mut inv_freq = runtime.allocate(stream, rope.inv_freq.len())?;
                runtime.upload(stream, &rope.inv_freq, &mut inv_freq, 0)?;
                self.0.insert((rope.clone(), inv_freq))
            }
        };
        Ok(inv_freq)
    }
}
