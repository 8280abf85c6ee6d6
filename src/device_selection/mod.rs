//! Device selection: opens a device, and uses it only if it computes what the CPU device computes.

mod self_test;

pub use self_test::{SelfTestError, self_test};

use crate::device::{Device, DeviceError};

/// The result of looking for a device and testing it.
#[derive(Debug)]
pub enum Chosen<D> {
    /// The device exists and passed its [`self_test`].
    Device(D),
    /// The device does not exist.
    Missing,
    /// The device exists but must not be used, for this reason.
    Refused(String),
}

/// Opens a device, if it exists, and tests it.
pub fn choose<D: Device>(open: impl FnOnce() -> Result<Option<D>, DeviceError>) -> Chosen<D> {
    match open() {
        Ok(None) => Chosen::Missing,
        Ok(Some(device)) => match self_test(device) {
            Ok(device) => Chosen::Device(device),
            Err(error) => Chosen::Refused(error.to_string()),
        },
        Err(DeviceError::Unavailable { reason, .. }) => Chosen::Refused(reason),
        Err(error) => Chosen::Refused(error.to_string()),
    }
}
