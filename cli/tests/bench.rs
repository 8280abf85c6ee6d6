//! `flexdraft bench`: what it reports, on a shape that takes no time.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{Run, run, succeed};
use serde_json::Value;

const TINY: [&str; 4] = ["bench", "--synthetic", "tiny", "--quick"];

#[test]
fn a_line_for_every_mode_batch_and_context() {
    let args = [&TINY[..], &["--batch", "1,3", "--context", "0,20", "--block-size", "5"]].concat();
    let lines = succeed(&args).stdout;
    for mode in ["prefill", "ar", "sequential", "parallel"] {
        assert_eq!(lines.matches(&format!("  {mode} ")).count(), 4, "{lines}");
    }
    assert!(lines.contains("blocks of 5, 4 draft tokens verified"), "{lines}");
    assert!(lines.contains("this machine, ") && lines.contains("GB/s"), "{lines}");
}

#[test]
fn json_has_the_numbers() {
    let args = [&TINY[..], &["--json", "--threads", "1", "--tau", "2.5", "--dtype", "bf16"]].concat();
    let report: Value = serde_json::from_str(&succeed(&args).stdout).unwrap();
    assert_eq!(report["dtype"], "bf16");
    assert!(report["ceilings"]["read_bytes_per_second"].as_f64().unwrap() > 1e8);
    assert!(report["ceilings"]["flops_per_second"].as_f64().unwrap() > 1e8);
    let steps = report["steps"].as_array().unwrap();
    assert_eq!(steps.len(), 4);
    for step in steps {
        let number = |key: &str| step[key].as_f64().unwrap();
        let tokens = match step["mode"].as_str().unwrap() {
            "prefill" => step["context"].as_f64().unwrap(),
            "ar" => 1.0,
            _ => 2.5,
        };
        let rate = tokens / number("step_seconds");
        assert!((number("tokens_per_second") / rate - 1.0).abs() < 1e-9);
        assert!(number("share_of_floor") > 0.0);
    }
}

#[test]
fn the_bundled_pair_without_a_model() {
    let lines = succeed(&["bench", "--quick"]).stdout;
    assert_eq!(lines.matches("parallel").count(), 1, "{lines}");
}

#[test]
fn what_cannot_be() {
    for (args, message) in [
        (&["--batch", "0"][..], "it must be at least 1"),
        (&["--synthetic", "gpt"], "invalid value 'gpt'"),
        (&["--synthetic", "tiny", "--target", "x"], "cannot be used with"),
    ] {
        let Run { code, stdout, stderr } = run(&[&["bench"], args].concat());
        assert_eq!((code, stdout.as_str()), (Some(2), ""), "{args:?}");
        assert!(stderr.contains(message), "{stderr}");
    }
}
