//! Tests of the C header: it agrees with the Rust sources, and is valid C and C++ with the same sizes of structs.

use std::fs;
use std::mem::{align_of, size_of};

use crate::support::{compile, generated_header, header};
use flexdraft_ffi::*;

#[test]
fn the_header_is_that_of_the_sources() {
    let checked_in = fs::read_to_string(header()).unwrap();
    assert!(checked_in == generated_header(), "run with FLEXDRAFT_BLESS=1, as the sources have changed");
}

/// Returns the names of the functions that the header declares.
fn functions(text: &str) -> Vec<&str> {
    fn name(line: &str) -> Option<&str> {
        let (before, _) = line.split_once('(')?;
        let name = before.rsplit([' ', '*']).next()?;
        (!line.starts_with("//") && name.starts_with("flexdraft_")).then_some(name)
    }
    text.lines().filter_map(name).collect()
}

#[test]
fn every_function_is_declared_with_its_errors() {
    let text = fs::read_to_string(header()).unwrap();
    let declared = functions(&text);
    // Version and text of the version, opening and closing of kernels and passes, the upload, the limits, three sizes
    // of workspaces, three rows of tables and the tables of edits, the faults, and the launches.
    assert_eq!(declared.len(), 2 + 2 + 3 + 1 + 3 + 4 + 1 + 17, "{declared:?}");
    for launch in [
        "joint_attention",
        "sample",
        "sample_partials",
        "accept",
        "chain_choose",
        "chain_score",
        "chain_walk",
        "follow_verdicts",
        "select_drafts",
        "embed",
        "gather",
        "rms_norm",
        "add",
        "silu_mul",
        "silu_add",
        "rope_table",
        "norm_rope_append",
    ] {
        assert!(declared.contains(&format!("flexdraft_{launch}").as_str()), "{launch}");
    }
    for pair in text.split(";\n").filter(|part| part.contains("struct FlexdraftError *error")) {
        let function = pair.rsplit("\n\n").next().unwrap();
        assert!(function.contains("Errors:") || function.contains("Returns FLEXDRAFT_OK"), "{function}");
    }
}

/// Returns a program that has the sizes and alignments of the structs in Rust as assertions.
fn assertions() -> String {
    let mut text = String::from("#include \"flexdraft.h\"\n#include <stddef.h>\n");
    macro_rules! sizes {
        ($($name:ident { $last:ident }),* $(,)?) => {$(
            text += &format!(
                "static_assert(sizeof({name}) == {}, \"size of {name}\");\n\
                 static_assert(offsetof({name}, {last}) == {}, \"last field of {name}\");\n",
                size_of::<$name>(),
                std::mem::offset_of!($name, $last),
                name = stringify!($name),
                last = stringify!($last),
            );
            assert_eq!(align_of::<$name>() % 4, 0);
        )*};
    }
    sizes![
        FlexdraftError { text },
        FlexdraftBuffer { reserved },
        FlexdraftHeads { head_dim },
        FlexdraftModelShape { hidden_chain_rank },
        FlexdraftSequence { slots },
        FlexdraftPassRows { page_size },
        FlexdraftCache { v_head_stride },
        FlexdraftHeadRows { stride },
        FlexdraftJointAttention { unused },
        FlexdraftAttentionSize { reserved },
        FlexdraftRowSampling { words },
        FlexdraftSamplingParams { sequence },
        FlexdraftRowStats { fault },
        FlexdraftSample { masks },
        FlexdraftRowEdits { words },
        FlexdraftLogitEdit { words },
        FlexdraftEditedRows { reserved },
        FlexdraftEditTables { mask_count },
        FlexdraftVerify { words },
        FlexdraftVerifySequence { draft },
        FlexdraftVerdict { unused },
        FlexdraftAccept { reserved },
        FlexdraftChainChoose { reserved },
        FlexdraftChainScore { error_word },
        FlexdraftChainWalk { error_word },
        FlexdraftDraft { words },
        FlexdraftDraftGroups { reserved },
        FlexdraftSelectDrafts { error_word },
        FlexdraftFollowVerdicts { error_word },
        FlexdraftEmbed { error_word },
        FlexdraftGather { error_word },
        FlexdraftRmsNorm { reserved },
        FlexdraftAdd { delta },
        FlexdraftSiluMul { out },
        FlexdraftSiluAdd { error_word },
        FlexdraftRopeTable { reserved },
        FlexdraftNormRopeAppend { v },
    ];
    let structs = text.matches("sizeof(").count();
    let declared = fs::read_to_string(header()).unwrap().matches("typedef struct ").count();
    // The two opaque types have no size.
    assert_eq!(structs, declared - 2, "the list of structs is not complete");
    text
}

#[test]
fn c_and_cpp_agree_on_the_structs() {
    let folder = tempfile();
    let program = assertions();
    let c = folder.join("sizes.c");
    fs::write(&c, format!("#include <assert.h>\n{program}\nint main(void) {{ return 0; }}\n")).unwrap();
    compile("CC", "cc", &["-std=c11", "-fsyntax-only"], &c).unwrap();
    let cpp = folder.join("sizes.cpp");
    fs::write(&cpp, format!("{program}\nint main() {{ return 0; }}\n")).unwrap();
    compile("CXX", "c++", &["-std=c++17", "-fsyntax-only"], &cpp).unwrap();
    // The check can fail.
    let wrong = folder.join("wrong.c");
    fs::write(&wrong, "#include <assert.h>\n#include \"flexdraft.h\"\nstatic_assert(sizeof(FlexdraftVerdict) == 31, \"\");\n").unwrap();
    let refused = compile("CC", "cc", &["-std=c11", "-fsyntax-only"], &wrong).unwrap_err();
    assert!(refused.contains("static assertion failed"), "{refused}");
}

fn tempfile() -> std::path::PathBuf {
    crate::support::folder("header")
}
