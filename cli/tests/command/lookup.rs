//! Tests of `--draft lookup`: drafts from the text itself, without a drafter.

use crate::common::{bundled, run, succeed};

const PROMPT: [&str; 4] = ["--draft", "lookup", "--prompt", "pub unsafe fn _mm_add_epi16(a: __m128i"];

#[test]
fn lookups_change_no_token_and_save_steps() {
    let of = |mode: &str, more: &[&str]| bundled(&[&PROMPT[..], &["--mode", mode], more].concat());
    for more in [&["--temperature", "0"][..], &["--temperature", "1", "--rule", "match", "--seed", "3"]] {
        let plain = of("ar", more);
        for mode in ["sequential", "auto"] {
            assert_eq!(of(mode, more).output_ids, plain.output_ids, "{mode}");
        }
        let sequential = of("sequential", more);
        assert!(4 * sequential.steps.len() < 3 * plain.steps.len(), "{} steps", sequential.steps.len());
        assert!(sequential.steps.iter().any(|step| step.candidates.len() == 9));
        assert!(plain.steps.iter().all(|step| step.candidates.len() == 1));
    }
    for rule in ["rejection", "block"] {
        let sample = of("sequential", &["--temperature", "1", "--rule", rule, "--max-new-tokens", "40"]);
        assert_eq!(sample.output_ids.len(), 40);
    }
}

#[test]
fn the_report_compares_the_modes_that_there_are() {
    let report = succeed(&PROMPT).stderr;
    assert!(report.contains("Lossless: every mode gave the same 256 tokens as `ar`."), "{report}");
    assert!(
        report.contains("the lookup itself computes nothing") && !report.contains("parallel"),
        "{report}"
    );
}

#[test]
fn what_needs_a_drafter_is_refused() {
    let parallel = run(&[&PROMPT[..], &["--mode", "parallel"]].concat());
    let refused = "error: mode `parallel` needs a drafter; without a drafter, only `ar` runs\n";
    assert_eq!((parallel.code, parallel.stderr.as_str()), (Some(2), refused));
    let bench = run(&["bench", "--quick", "--draft", "lookup"]);
    let refused = "error: `bench` times the steps of a drafter, and `--draft lookup` has none\n";
    assert_eq!((bench.code, bench.stderr.as_str()), (Some(2), refused));
    let folder = run(&["--draft", "./lookup", "--prompt-ids", "1"]);
    assert!(folder.code == Some(2) && folder.stderr.contains("lookup"), "{}", folder.stderr);
}
