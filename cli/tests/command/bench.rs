//! Tests of the output of `flexdraft bench`, on a model shape that takes little time.

use serde_json::Value;

use crate::common::{Run, run, succeed};

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

/// Returns the JSON lines of a run of `flexdraft bench --json`.
fn json(args: &[&str]) -> Vec<Value> {
    let args = [&TINY[..], &["--json"], args].concat();
    succeed(&args).stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn json_has_the_numbers() {
    let lines = json(&["--threads", "1", "--tau", "2.5", "--dtype", "bf16"]);
    let (header, steps) = lines.split_first().unwrap();
    assert_eq!(header["dtype"], "bf16");
    assert!(header["ceilings"]["read_bytes_per_second"].as_f64().unwrap() > 1e8);
    assert!(header["ceilings"]["flops_per_second"].as_f64().unwrap() > 1e8);
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
        assert!(
            (number("floor_seconds") / number("step_seconds") / number("share_of_floor") - 1.0).abs() < 1e-9
        );
        // The CPU device is synchronous, so the report has no separate time for submitting a step.
        assert_eq!(step["submit_seconds"], Value::Null);
    }
}

#[test]
fn one_run_measures_several_verify_lengths_and_numbers_of_groups() {
    let lines = json(&["--verify-len", "1,7", "--groups", "all,2", "--mode", "ar,sequential,parallel"]);
    let names: Vec<_> = lines[1..]
        .iter()
        .map(|line| {
            let number = |key: &str| line[key].as_u64().unwrap();
            (line["mode"].as_str().unwrap(), number("verify_len"), number("groups"))
        })
        .collect();
    let expected = [
        ("ar", 0, 0),
        ("sequential", 1, 0),
        ("parallel", 1, 2),
        ("sequential", 7, 0),
        ("parallel", 7, 8),
        ("parallel", 7, 2),
    ];
    assert_eq!(names, expected);
    assert_eq!(lines[0]["verify_lens"], serde_json::json!([1, 7]));
}

#[test]
fn what_does_not_fit_is_skipped_and_the_run_goes_on() {
    // The KV cache for this batch size is larger than any address space.
    let huge = "1000000000000";
    let lines = json(&["--batch", &format!("{huge},1"), "--mode", "ar"]);
    assert_eq!(lines.len(), 3);
    assert_eq!((&lines[1]["mode"], lines[1]["batch"].to_string()), (&Value::Null, huge.into()));
    let why = lines[1]["skipped"].as_str().unwrap();
    assert!(why.starts_with("out of memory: KV cache needs "), "{why}");
    assert!(lines[2]["step_seconds"].as_f64().unwrap() > 0.0);

    let text = succeed(&[&TINY[..], &["--batch", huge]].concat()).stdout;
    assert!(text.contains("skipped: out of memory: KV cache needs "), "{text}");
}

#[test]
fn a_gpu_that_is_not_there() {
    let Run { code, stdout, stderr } = run(&[&TINY[..], &["--device", "cuda:60000"]].concat());
    assert_eq!((code, stdout.as_str()), (Some(2), ""));
    assert!(stderr.contains("device `cuda:60000` is not available"), "{stderr}");
}

#[test]
fn the_bundled_pair_without_a_model() {
    let lines = succeed(&["bench", "--quick"]).stdout;
    assert_eq!(lines.matches("parallel").count(), 1, "{lines}");
}

#[test]
fn what_cannot_be() {
    for (args, message) in [
        (&["--batch", "0"][..], "expected a whole number of at least 1"),
        (&["--synthetic", "gpt"], "invalid value 'gpt'"),
        (&["--groups", "all,0"], "expected `all` or a whole number of at least 1"),
        (&["--mode", "fast"], "invalid value 'fast'"),
        (&["--synthetic", "tiny", "--target", "x"], "cannot be used with"),
    ] {
        let Run { code, stdout, stderr } = run(&[&["bench"], args].concat());
        assert_eq!((code, stdout.as_str()), (Some(2), ""), "{args:?}");
        assert!(stderr.contains(message), "{stderr}");
    }
}

#[test]
fn curves_are_comma_separated_values() {
    let text = succeed(&[
        "bench",
        "--synthetic",
        "tiny",
        "--curves",
        "--quick",
        "--verify-len",
        "1,3",
        "--context",
        "16",
        "--block-size",
        "4",
    ])
    .stdout;
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split(',').collect()).collect();
    assert_eq!((lines[0][0], lines[0].len()), ("curve", 11));
    // 33 numbers of rows, and for each verify length a drafting pass and every number of groups.
    assert_eq!(lines.len(), 1 + 33 + 3 + 5);
    for line in &lines[1..] {
        let numbers: Vec<f64> = line[1..].iter().map(|number| number.parse().unwrap()).collect();
        let (median, least, most) = (numbers[6], numbers[7], numbers[8]);
        assert!(0.0 < least && least <= median && median <= most, "{line:?}");
    }
}
