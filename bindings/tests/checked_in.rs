//! Tests that the bindings in the repository agree with the headers.

#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::{env, fs};

use flexdraft_bindings::{Header, load_libclang};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Returns whether libclang was found; with `FLEXDRAFT_REQUIRE_LIBCLANG=1` its absence is a failure.
fn has_libclang() -> bool {
    match load_libclang() {
        Ok(()) => true,
        Err(problem) => {
            assert!(env::var_os("FLEXDRAFT_REQUIRE_LIBCLANG").is_none_or(|value| value != "1"), "{problem}");
            eprintln!("SKIPPED, because there is no libclang (set LIBCLANG_PATH): {problem}");
            false
        }
    }
}

/// Returns the folder of the checked-in bindings. With `FLEXDRAFT_BLESS=1`, the first call writes them, before any test
/// reads them.
fn checked_in() -> PathBuf {
    static WRITTEN: Once = Once::new();
    let folder = root().join("src/kernels/params");
    WRITTEN.call_once(|| {
        if env::var_os("FLEXDRAFT_BLESS").is_none_or(|value| value != "1") || !has_libclang() {
            return;
        }
        fs::create_dir_all(&folder).unwrap();
        for header in Header::all(&root()).unwrap() {
            fs::write(bindings_in(&folder, &header), header.bindings(&root()).unwrap()).unwrap();
        }
    });
    folder
}

/// Returns the file with the bindings of a header.
fn bindings_in(folder: &Path, header: &Header) -> PathBuf {
    folder.join(&header.name).with_extension("rs")
}

#[test]
fn bindings_are_those_of_the_headers() {
    if !has_libclang() {
        return;
    }
    let (root, folder) = (root(), checked_in());
    let stale: Vec<PathBuf> = Header::all(&root)
        .unwrap()
        .iter()
        .filter(|header| {
            let text = fs::read_to_string(bindings_in(&folder, header));
            text.ok() != Some(header.bindings(&root).unwrap())
        })
        .map(|header| bindings_in(&folder, header))
        .collect();
    assert!(stale.is_empty(), "run with FLEXDRAFT_BLESS=1, as the headers have changed: {stale:?}");
}

#[test]
fn every_module_has_a_header() {
    let headers = Header::all(&root()).unwrap();
    for entry in checked_in().read_dir().unwrap() {
        let name = entry.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned();
        assert!(name == "mod" || headers.iter().any(|header| header.name == name), "{name}");
    }
}

#[test]
fn a_changed_header_changes_its_bindings() {
    if !has_libclang() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let copy = |file: &str, edit: &dyn Fn(String) -> String| {
        let path = folder.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, edit(fs::read_to_string(root().join(file)).unwrap())).unwrap();
    };
    copy("rustfmt.toml", &|text| text);
    let bindings = |edit: &dyn Fn(String) -> String| {
        copy("cuda/common/params.h", edit);
        let headers = Header::all(folder.path()).unwrap();
        assert_eq!(headers.len(), 1);
        headers[0].bindings(folder.path()).unwrap()
    };
    let unchanged = bindings(&|text| text);
    assert_eq!(unchanged, fs::read_to_string(checked_in().join("common.rs")).unwrap());
    let swapped = bindings(&|text| {
        text.replace("int32_t batch;\n    int32_t rows;", "int32_t rows;\n    int32_t batch;")
    });
    assert_ne!(swapped, unchanged);
    let wider = bindings(&|text| text.replace("int32_t pages;", "int64_t pages;"));
    assert!(wider.contains("pub pages: i64") && !unchanged.contains("pub pages: i64"), "{wider}");
}

/// Returns the size of a type of the bindings, given the sizes of the structs.
fn size(name: &str, structs: &HashMap<String, usize>) -> usize {
    if let Some((element, count)) =
        name.strip_prefix('[').and_then(|array| array.strip_suffix(']')?.split_once(';'))
    {
        let count: usize = count.trim().trim_end_matches("usize").parse().unwrap();
        return size(element.trim(), structs) * count;
    }
    match name {
        _ if name.starts_with('*') => 8,
        "u64" | "i64" | "f64" => 8,
        "u32" | "i32" | "f32" => 4,
        "u16" | "i16" => 2,
        "u8" | "i8" => 1,
        _ => *structs.get(name).unwrap_or_else(|| panic!("a type of unknown size: {name}")),
    }
}

/// The runtime compares launches by the bytes of their parameters, so a struct has no byte without a field.
#[test]
fn the_fields_of_a_struct_fill_it() {
    let mut text = String::new();
    for entry in checked_in().read_dir().unwrap() {
        text.push_str(&fs::read_to_string(entry.unwrap().path()).unwrap());
    }
    // The assertions have the form ["Size of NAME"][::core::mem::size_of::<NAME>() - BYTESusize];
    let structs: HashMap<String, usize> = text
        .split("\"Size of ")
        .skip(1)
        .map(|assertion| {
            let (name, rest) = assertion.split_once('"').unwrap();
            let bytes = rest.split_once(" - ").unwrap().1.split_once("usize").unwrap().0;
            (name.to_owned(), bytes.parse().unwrap())
        })
        .collect();
    let mut checked = 0;
    for definition in text.split("pub struct ").skip(1) {
        let (name, rest) = definition.split_once(" {").unwrap();
        let (fields, _) = rest.split_once("\n}").unwrap();
        let types = fields.lines().filter_map(|line| line.trim().strip_prefix("pub ")?.split_once(": "));
        let sum: usize = types.map(|(_, kind)| size(kind.trim_end_matches(','), &structs)).sum();
        assert_eq!(Some(&sum), structs.get(name), "{name} has padding");
        checked += 1;
    }
    assert!(checked >= 20, "{checked} structs");
}
