//! The probe: the cost of steps on this device, measured once and kept in the user's cache folder.

mod kept;
mod key;

use std::path::PathBuf;

use flexdraft::decode::{CostModel, Engine, Probe, ProbeOptions};
use flexdraft::device::Device;

pub use self::key::{Place, key};
use crate::error::Result;

/// Returns the cost model for an engine without requests, from the result that was kept under `key`, or else from a probe,
/// whose result is then kept.
///
/// `measuring` is called before the probe begins. A result that cannot be read is measured again, and a result that cannot be written is not kept: neither is an error.
pub fn cost_model<D: Device>(
    engine: &mut Engine<D>,
    options: &ProbeOptions,
    key: &str,
    measuring: impl FnOnce(),
) -> Result<CostModel> {
    Ok(probe(kept::folder(), key, || {
        measuring();
        Ok(engine.probe(options)?)
    })?
    .cost_model())
}

/// Returns the probe that `folder` keeps under `key`, or else the result of `measure`, which `folder` keeps afterwards.
fn probe(folder: Option<PathBuf>, key: &str, measure: impl FnOnce() -> Result<Probe>) -> Result<Probe> {
    let file = folder.map(|folder| kept::file(&folder, key));
    if let Some(probe) = file.as_ref().and_then(|file| kept::read(file, key)) {
        return Ok(probe);
    }
    let probe = measure()?;
    if let Some(file) = file {
        // Without a kept result, the next run measures again.
        let _ = kept::write(&file, key, &probe);
    }
    Ok(probe)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use flexdraft::decode::{ProbedStep, StepShape};

    use super::*;
    use crate::error::CliError;

    fn measured(seconds: f64) -> Probe {
        let shape =
            StepShape { sequences: 1, candidates: 16, mask_rows: 32, cached: 64, ..StepShape::default() };
        Probe { steps: vec![ProbedStep { shape, seconds, repeats: 3 }; 2] }
    }

    fn never() -> Result<Probe> {
        panic!("the kept result was not used")
    }

    #[test]
    fn a_result_is_kept_under_its_key() {
        let folder = tempfile::tempdir().unwrap();
        let within = || Some(folder.path().join("new").join("flexdraft"));
        assert_eq!(probe(within(), "one", || Ok(measured(0.1))).unwrap(), measured(0.1));
        assert_eq!(probe(within(), "one", never).unwrap(), measured(0.1));
        assert_eq!(probe(within(), "two", || Ok(measured(0.2))).unwrap(), measured(0.2));
        assert_eq!(probe(within(), "one", never).unwrap(), measured(0.1));
        // Nothing but the two results is left in the folder.
        assert_eq!(fs::read_dir(within().unwrap()).unwrap().count(), 2);
    }

    #[test]
    fn a_damaged_file_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let within = || Some(folder.path().to_owned());
        probe(within(), "key", || Ok(measured(0.1))).unwrap();
        let file = kept::file(folder.path(), "key");
        let whole = fs::read_to_string(&file).unwrap();
        let damaged = [
            String::new(),
            whole[..whole.len() / 2].to_owned(),
            whole.replace("key", "other"),
            whole.replace("0.1", "-0.1"),
            whole.replace("0.1", "\"0.1\""),
            whole.replace("0.1", "1e999"),
            whole.replace("\"steps\"", "\"others\""),
            "{\"key\":\"key\",\"steps\":[]}".to_owned(),
        ];
        for text in damaged {
            assert_ne!(text, whole);
            fs::write(&file, &text).unwrap();
            assert_eq!(probe(within(), "key", || Ok(measured(0.3))).unwrap(), measured(0.3), "{text}");
            assert_eq!(probe(within(), "key", never).unwrap(), measured(0.3));
        }
        fs::write(&file, [0xff, 0xfe]).unwrap();
        assert_eq!(probe(within(), "key", || Ok(measured(0.4))).unwrap(), measured(0.4));
    }

    #[test]
    fn without_a_folder_every_run_measures() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(probe(None, "key", || Ok(measured(0.1))).unwrap(), measured(0.1));
        // A file where the folder should be.
        let place = folder.path().join("file");
        fs::write(&place, "").unwrap();
        for seconds in [0.1, 0.2] {
            let found = probe(Some(place.clone()), "key", || Ok(measured(seconds))).unwrap();
            assert_eq!(found, measured(seconds));
        }
    }

    #[test]
    fn a_failed_probe_is_not_kept() {
        let folder = tempfile::tempdir().unwrap();
        let within = || Some(folder.path().to_owned());
        assert!(probe(within(), "key", || Err(CliError::Usage("no".into()))).is_err());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
