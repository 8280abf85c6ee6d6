"""Counts the held-out functions that a target completes: functions_written.py FLEXDRAFT TARGET HELDOUT_FOLDER

For every function of the held-out text, the target continues its doc comment, greedily and without a drafter.
Three counts are printed: continuations whose first function is complete and well-formed (attributes, signature, a
body with matching brackets), continuations with the name of the held-out function, and continuations that equal the
held-out function to the letter.
"""

import pathlib
import re
import subprocess
import sys
import tempfile

NEW_TOKENS = 256

DOC = re.compile(r"(?:///[^\n]*\n)+(?://[^\n]*\n)*(?:///[^\n]*\n)*")
FUNCTION = re.compile(
    r"(?:///[^\n]*\n)*(?:#\[[^\n]*\]\n|#\[[^\n]*\n(?:[ \t][^\n]*\n)*\)\]\n)+"
    r"pub (?:unsafe )?fn (\w+)(?:<[^>]*>)?\([^{;]*\)(?: -> [^{]+)? \{\n(?:[^}\n][^\n]*\n|\n)*\}\n"
)
NAME = re.compile(r"\bfn (\w+)")


def continuation(flexdraft: str, target: str, prompt: str) -> str:
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write(prompt)
        file.flush()
        command = [flexdraft, "generate", "--target", target, "--mode", "ar", "--prompt-file", file.name]
        command += ["--max-new-tokens", str(NEW_TOKENS)]
        return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True).stdout


def well_formed(function: str) -> bool:
    return all(function.count(opening) == function.count(closing) for opening, closing in ("()", "[]", "{}"))


def main() -> None:
    flexdraft, target, heldout = sys.argv[1:]
    counts = {"functions": 0, "well-formed": 0, "of the same name": 0, "identical": 0}
    for path in sorted(pathlib.Path(heldout).glob("*.txt")):
        for function in re.split(r"(?<=\n}\n)\n(?=///)", path.read_text(encoding="utf-8")):
            doc = DOC.match(function).group()
            text = continuation(flexdraft, target, doc)
            written = FUNCTION.match(text)
            name = NAME.search(text)
            counts["functions"] += 1
            counts["well-formed"] += bool(written and well_formed(written.group()))
            counts["of the same name"] += bool(name and name.group(1) == NAME.search(function[len(doc) :]).group(1))
            counts["identical"] += bool(written and written.group().strip() == function[len(doc) :].strip())
    print(", ".join(f"{count} {what}" for what, count in counts.items()))


main()
