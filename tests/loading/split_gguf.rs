//! Tests of split GGUF files: all parts are read, whichever of them is named, and a missing or exchanged part is an
//! error.

use std::fs;
use std::path::{Path, PathBuf};

use flexdraft::model::inspect::Report;
use flexdraft::model::{ModelConfig, TargetWeights, Tokenizer};
use proptest::prelude::*;

use crate::support::bounds::within_bounds;
use crate::support::gguf::{File, Value};
use crate::support::properties::properties;

const COUNT: usize = 3;

fn name(index: usize) -> String {
    format!("tiny-{:05}-of-{COUNT:05}.gguf", index + 1)
}

fn u16_value(number: usize) -> Value {
    Value::Raw(2, (number as u16).to_le_bytes().to_vec())
}

/// The parts of a small model: the metadata and no tensor, and two parts with half of the tensors each.
fn parts() -> Vec<File> {
    let whole = File::llama();
    let tensors = whole.tensors.len();
    let mut parts = Vec::new();
    for index in 0..COUNT {
        let mut part = File { tensors: Vec::new(), data: Vec::new(), ..whole.clone() };
        if index > 0 {
            part.pairs.clear();
            let half = tensors.div_ceil(2);
            let own = whole.tensors.iter().skip((index - 1) * half).take(half);
            own.for_each(|tensor| part.add(&tensor.name, &tensor.shape));
            part.data.iter_mut().for_each(|byte| *byte = index as u8);
        }
        part.set("split.no", u16_value(index));
        part.set("split.count", u16_value(COUNT));
        part.set("split.tensors.count", Value::I32(tensors as i32));
        parts.push(part);
    }
    parts
}

fn write(dir: &Path, parts: &[File]) -> Vec<PathBuf> {
    let paths: Vec<PathBuf> = (0..parts.len()).map(|index| dir.join(name(index))).collect();
    paths.iter().zip(parts).for_each(|(path, part)| fs::write(path, part.bytes()).unwrap());
    paths
}

fn error(path: &Path) -> String {
    let error = TargetWeights::read(path).unwrap_err().to_string();
    error.replace(&format!("{}{}", path.parent().unwrap().display(), std::path::MAIN_SEPARATOR), "")
}

#[test]
fn every_part_leads_to_the_model() {
    let dir = tempfile::tempdir().unwrap();
    for path in write(dir.path(), &parts()) {
        let weights = TargetWeights::read(&path).unwrap();
        assert_eq!(weights.config, ModelConfig::read(&path).unwrap());
        assert_eq!(weights.layers[0].down.weight.to_f32()[0].to_bits(), 0x0202_0202);
        assert_eq!(weights.embed.to_f32()[0].to_bits(), 0x0101_0101);
        // SAFETY: no process changes the files.
        let mapped = unsafe { TargetWeights::map(&path) }.unwrap();
        assert_eq!(mapped.layers[0].up.weight.to_f32(), weights.layers[0].up.weight.to_f32());
        assert_eq!(Tokenizer::read(&path, 4).unwrap().len(), 4);
        let report = Report::read(&path, None).unwrap();
        assert_eq!(report.target.files.len(), COUNT);
        assert!(report.is_sound() && report.to_string().contains("3 files"), "{report}");
    }
}

#[test]
fn parts_that_are_missing_or_exchanged() {
    let dir = tempfile::tempdir().unwrap();
    let paths = write(dir.path(), &parts());
    fs::remove_file(&paths[2]).unwrap();
    fs::remove_file(&paths[0]).unwrap();
    assert_eq!(
        error(&paths[1]),
        format!("{} is one of the 3 files of a split model; missing: {}, {}", name(1), name(0), name(2))
    );
    let lonely = dir.path().join("model.gguf");
    fs::write(&lonely, parts()[0].bytes()).unwrap();
    assert_eq!(
        error(&lonely),
        "model.gguf is not a valid GGUF file: it is part 1 of 3 of a split model, and without \
         `-00001-of-00003.gguf` at the end of its name the other parts cannot be found"
    );

    let mut exchanged = parts();
    exchanged.swap(1, 2);
    let dir = tempfile::tempdir().unwrap();
    let paths = write(dir.path(), &exchanged);
    assert!(error(&paths[0]).contains("it is part 3 of 3 of a split model, its name that it is part 2 of 3"));
    assert!(error(&paths[1]).contains("without `-00003-of-00003.gguf` at the end of its name"));

    let mut twice = parts();
    twice[2] = File { pairs: twice[2].pairs.clone(), ..twice[1].clone() };
    let dir = tempfile::tempdir().unwrap();
    let error = error(&write(dir.path(), &twice)[0]);
    assert!(error.ends_with("occurs more than once") && error.starts_with(&name(2)), "{error}");
}

#[test]
fn keys_of_splits_that_are_wrong() {
    let changed = |key: &str, value: Value| {
        let mut changed = parts();
        changed[0].set(key, value);
        let dir = tempfile::tempdir().unwrap();
        let path = &write(dir.path(), &changed)[0];
        error(path).replace(&format!("{}: ", name(0)), "")
    };
    assert_eq!(
        changed("split.no", u16_value(3)),
        "`split.no` is 3, expected a number below `split.count`, 3"
    );
    assert_eq!(
        changed("split.count", "two".into()),
        "`split.count` is \"two\", expected a whole number from 1 to 65535"
    );
    assert_eq!(
        changed("split.tensors.count", Value::I32(12)),
        "`split.tensors.count` is 12, expected 11, the tensors of all its files"
    );
    let mut unnumbered = parts();
    unnumbered[0].remove("split.no");
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(error(&write(dir.path(), &unnumbered)[0]), format!("{}: key `split.no` is missing", name(0)));
    // A split model with a single part is complete.
    let mut whole = File::llama();
    whole.set("split.count", u16_value(1));
    assert!(whole.open().unwrap().target().is_ok());
}

proptest! {
    #![proptest_config(properties(64))]

    #[test]
    fn damaged_parts_are_an_error_or_harmless(
        part in 0..COUNT,
        edits in prop::collection::vec((0usize..700, any::<u8>()), 1..4),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let paths = write(dir.path(), &parts());
        let mut bytes = fs::read(&paths[part]).unwrap();
        for (at, byte) in edits {
            let len = bytes.len();
            bytes[at % len] = byte;
        }
        fs::write(&paths[part], &bytes).unwrap();
        let total = paths.iter().map(|path| fs::metadata(path).unwrap().len()).sum::<u64>();
        let first = paths[0].clone();
        within_bounds(total as usize, move || drop(TargetWeights::read(&first)));
    }
}
