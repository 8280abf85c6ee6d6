//! Models whose logits no token may be drawn from: exit code 1, and no output.

use crate::common::{arg, run, target_with_elements, tiny};

/// Weights that are finite and products that are not: the first step finds out, and writes nothing.
#[test]
fn logits_that_are_not_finite_end_the_command() {
    let overflowing = target_with_elements(&["model.norm.weight"], 64, 3e38);
    assert_eq!(run(&["inspect", "--target", arg(overflowing.path())]).code, Some(0));
    let generate = ["generate", "--target", arg(overflowing.path()), "--prompt-ids", "5,6,7"];
    for (drafter, json) in [(false, false), (false, true), (true, false), (true, true)] {
        let draft = tiny("draft");
        let drafter = if drafter { vec!["--draft", arg(&draft)] } else { vec![] };
        let json = if json { vec!["--json", "--samples", "2"] } else { vec![] };
        let broken = run(&[&generate[..], &drafter, &json].concat());
        assert_eq!((broken.code, broken.stdout.as_str()), (Some(1), ""), "{}", broken.stderr);
        let message = "error: the target's logits for position 3 have ";
        assert!(broken.stderr.lines().last().unwrap().starts_with(message), "{}", broken.stderr);
    }
}
