//! `flexdraft chat`: history, commands, and Ctrl-C in a terminal.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Stdio;

use tempfile::TempDir;

use super::common::{Run, arg, bundled, finished, flexdraft, run, tiny};
#[cfg(unix)]
use super::terminal::{CTRL_C, CTRL_D, Terminal};

/// The bundled pair's target, with a chat template that puts each message on a line.
pub fn chatting_target() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../demo/tiny/target");
    for entry in fs::read_dir(target).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
    }
    let template = "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}\n{% endfor %}";
    fs::write(dir.path().join("chat_template.jinja"), template).unwrap();
    dir
}

fn drafter() -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../demo/tiny/drafter").display().to_string()
}

/// Runs a conversation with these lines as the user's input.
fn chat(args: &[&str], lines: &str) -> Run {
    let mut command = flexdraft(&[&["chat"], args].concat());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // A command that fails leaves its input unread.
    let _ = child.stdin.take().unwrap().write_all(lines.as_bytes());
    finished(child.wait_with_output().unwrap())
}

#[test]
fn answers_see_the_history_until_it_is_reset() {
    let target = chatting_target();
    let (target, draft) = (arg(target.path()), drafter());
    let common = ["--target", target, "--draft", &draft, "--max-new-tokens", "12", "--stop", "_mm"];
    let answer = |prompt: &str| bundled(&[&common[..], &["--prompt", prompt]].concat()).text;
    let one = answer("s:Rust\nu:/// Adds\n");
    let two = answer(&format!("s:Rust\nu:/// Adds\na:{one}\nu:pub fn\n"));
    assert!(one != two && !one.is_empty());
    for mode in ["parallel", "sequential", "ar", "auto"] {
        let args = [&common[..], &["--mode", mode, "--system", "Rust"]].concat();
        let run = chat(
            &args,
            "/// Adds\n\n/stats\npub fn\n/reset\n/stats\n/// Adds\n/nonsense\n/stats\n/quit\nx\n",
        );
        assert_eq!(run.code, Some(0), "{}", run.stderr);
        assert_eq!(run.stdout, format!("{one}\n{two}\n{one}\n"), "{mode}");
        for remark in [
            "1 answers: ",
            "A new conversation begins.",
            "There are no answers yet.",
            "/nonsense is not a command.",
        ] {
            assert!(run.stderr.contains(remark), "{remark}: {}", run.stderr);
        }
        assert!(!run.stderr.contains("> "), "{}", run.stderr);
        // Two of the three requests for statistics follow an answer.
        let expected =
            run.stderr.matches("`auto` expected the times of its last steps with a median error of ");
        assert_eq!(expected.count(), if mode == "auto" { 2 } else { 0 }, "{mode}: {}", run.stderr);
    }
}

/// Returns the numbers of prompt tokens, and of those that came from the cache, in each line of `/stats` about the last
/// answer.
fn prompt_tokens(stderr: &str) -> Vec<(usize, usize)> {
    let lines =
        stderr.lines().filter_map(|line| line.strip_prefix("last answer: ")?.split_once("tokens/s; "));
    let number = |text: &str| text.split(' ').next().unwrap().parse().unwrap();
    lines.map(|(_, prompt)| (number(prompt), number(prompt.split_once(" s, ").unwrap().1))).collect()
}

#[test]
fn a_turn_reads_only_the_end_of_the_conversation() {
    let target = chatting_target();
    let (target, draft) = (arg(target.path()), drafter());
    let common = ["--target", target, "--draft", &draft, "--max-new-tokens", "20", "--mode", "parallel"];
    let message = "/// Adds packed 32-bit integers in `a` and `b`, and returns the results of all lanes.";
    let lines = format!("{message}\n/stats\npub unsafe fn\n/stats\n/reset\n{message}\n/stats\n");
    let run = chat(&common, &lines);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    let counts = prompt_tokens(&run.stderr);
    let [(first, 0), (second, reused), (again, all)] = counts[..] else { panic!("{counts:?}") };
    // A turn reads the new message, and at most a page of 16 tokens of what came before.
    assert!(reused >= first - 16 && reused >= 16 && second > first, "{counts:?}");
    assert!(again == first && all >= first - 16, "{counts:?}");
    let without = chat(&[&common[..], &["--no-prefix-cache"]].concat(), &lines);
    assert_eq!(without.stdout, run.stdout);
    assert!(prompt_tokens(&without.stderr).iter().all(|&(_, reused)| reused == 0), "{}", without.stderr);
}

#[test]
fn ends_that_are_said() {
    let target = chatting_target();
    let (target, draft) = (arg(target.path()), drafter());
    let common = ["--target", target, "--draft", &draft, "--mode", "parallel", "--ignore-eos"];
    let run = chat(&[&common[..], &["--max-new-tokens", "3"]].concat(), "/// Adds");
    assert!(run.stderr.contains("(stopped after 3 tokens; see --max-new-tokens)\n"), "{}", run.stderr);
    let run = chat(&[&common[..], &["--context", "40"]].concat(), "/// Adds\nand\n/reset\n/// Adds\n");
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    let full = "(the context of 40 positions is full; /reset starts a new conversation)\n";
    assert_eq!(run.stderr.matches(full).count(), 2, "{}", run.stderr);
    assert!(run.stderr.contains("the context is 40; /reset starts a new conversation\n"), "{}", run.stderr);
}

#[test]
fn models_that_cannot_converse() {
    let refused = run(&["chat"]);
    assert_eq!(refused.code, Some(2));
    assert!(refused.stderr.ends_with("; `flexdraft generate` continues a text without a template\n"));
    let target = tiny("target");
    let drafter_needed = chat(&["--target", arg(&target), "--mode", "parallel"], "hi\n");
    assert_eq!((drafter_needed.code, drafter_needed.stdout.as_str()), (Some(2), ""));
}

#[cfg(unix)]
#[test]
fn an_interrupt_stops_an_answer_and_not_the_program() {
    let target = chatting_target();
    let (target, draft) = (arg(target.path()), drafter());
    let mut command = flexdraft(&["chat", "--target", target, "--draft", &draft, "--mode", "sequential"]);
    command.args(["--device", "cpu", "--ignore-eos", "--max-new-tokens", "60000", "--context", "60000"]);
    command.args(["--system", "Rust"]).env("NO_COLOR", "1").env("TERM", "xterm");
    let mut terminal = Terminal::run(command);
    terminal.wait_for("Ctrl-C stops an answer.\n> ");
    terminal.type_keys("/// Adds packed integers.\n");
    terminal.wait_for("fn");
    terminal.type_keys(CTRL_C);
    terminal.wait_for("(stopped by Ctrl-C)\n> ");
    terminal.type_keys("/stats\n");
    terminal.wait_for("last answer: ");
    terminal.wait_for("\n1 answers: ");
    terminal.wait_for("> ");
    // While the program waits for a message, Ctrl-C clears the line.
    terminal.type_keys("/qui");
    terminal.wait_for("/qui");
    terminal.type_keys(CTRL_C);
    terminal.wait_for("Ctrl-D or /quit ends the conversation.\n> ");
    terminal.type_keys("/// Subtracts.\n");
    terminal.wait_for("fn");
    terminal.type_keys(CTRL_C);
    terminal.wait_for("(stopped by Ctrl-C)\n> ");
    terminal.type_keys(CTRL_D);
    assert_eq!(terminal.end().code(), Some(0));
}
