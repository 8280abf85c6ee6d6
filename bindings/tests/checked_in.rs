//! Tests that the bindings in the repository agree with the headers.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
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

#[test]
fn bindings_are_those_of_the_headers() {
    if !has_libclang() {
        return;
    }
    let (root, mut stale) = (root(), Vec::new());
    for header in Header::all(&root).unwrap() {
        let path = root.join("src/kernels/params").join(&header.name).with_extension("rs");
        let generated = header.bindings(&root).unwrap();
        if fs::read_to_string(&path).ok().as_ref() == Some(&generated) {
            continue;
        }
        if env::var_os("FLEXDRAFT_BLESS").is_some_and(|value| value == "1") {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, generated).unwrap();
        } else {
            stale.push(path);
        }
    }
    assert!(stale.is_empty(), "run with FLEXDRAFT_BLESS=1, as the headers have changed: {stale:?}");
}

#[test]
fn every_module_has_a_header() {
    let headers = Header::all(&root()).unwrap();
    for entry in root().join("src/kernels/params").read_dir().unwrap() {
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
    assert_eq!(unchanged, fs::read_to_string(root().join("src/kernels/params/common.rs")).unwrap());
    let swapped = bindings(&|text| {
        text.replace("int32_t batch;\n    int32_t rows;", "int32_t rows;\n    int32_t batch;")
    });
    assert_ne!(swapped, unchanged);
    let wider = bindings(&|text| text.replace("int32_t pages;", "int64_t pages;"));
    assert!(wider.contains("pub pages: i64") && !unchanged.contains("pub pages: i64"), "{wider}");
}
