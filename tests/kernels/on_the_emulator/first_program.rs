//! Tests the first program that runs on a new GPU (`benches/kernels/first.rs`) on the SIMT emulator.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;

use crate::first;

/// Returns the kernels that the sources list in their tables, without the kernels that test the emulator's instructions.
pub fn listed() -> BTreeSet<String> {
    let cuda = Path::new(env!("CARGO_MANIFEST_DIR")).join("cuda");
    let families = std::fs::read_dir(cuda).unwrap().map(|entry| entry.unwrap().path());
    let mut names = BTreeSet::new();
    for family in families.filter(|path| path.is_dir() && !path.ends_with("golden")) {
        let name = family.file_name().unwrap().to_str().unwrap();
        let Ok(source) = std::fs::read_to_string(family.join(format!("{name}.cu"))) else { continue };
        let Some((_, table)) = source.split_once("FLEXDRAFT_KERNEL_TABLE(") else { continue };
        let (table, _) = table.split_once(')').unwrap();
        names.extend(table.split(',').skip(1).map(|name| name.trim().to_owned()));
    }
    assert!(names.len() > 20, "{names:?}");
    names
}

pub fn kernels<'a>(lines: &'a [Value], key: &str) -> Vec<&'a str> {
    lines.iter().filter_map(|line| line[key].as_str()).collect()
}

/// Returns the records of a file.
pub fn lines(path: &Path) -> Vec<Value> {
    std::fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The first program launches every kernel of the sources. A bundle has no sources, so there is nothing to compare.
#[test]
fn it_launches_every_kernel() {
    if !Path::new(env!("CARGO_MANIFEST_DIR")).join("cuda").exists() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    first::on_simt(directory.path(), 0).unwrap();
    let lines = lines(&directory.path().join("first-kernels.jsonl"));
    assert_eq!(lines[0]["device"], "SIMT emulator");
    let ok: Vec<Value> = lines.iter().filter(|line| line["status"] == "ok").cloned().collect();
    assert_eq!(kernels(&lines, "launching"), kernels(&ok, "kernel"), "a launch that says nothing of its end");
    let launched: BTreeSet<String> = kernels(&ok, "kernel").into_iter().map(str::to_owned).collect();
    assert_eq!(launched, listed());

    // After a failed launch, a second call of the program launches the remaining cases.
    let cases = kernels(&lines, "case").len();
    let again = tempfile::tempdir().unwrap();
    first::on_simt(again.path(), cases - 1).unwrap();
    let text = std::fs::read_to_string(again.path().join("first-kernels.jsonl")).unwrap();
    assert!(text.starts_with("{\"case\":") && text.matches("\"case\"").count() == 1, "{text}");
}
