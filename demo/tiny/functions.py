"""Cuts a crate's documented functions out of its sources: functions.py SOURCE_FOLDER OUTPUT_FOLDER

A function is kept with its doc comment and attributes, from the first `///` to the closing brace. Text between
functions (imports, tests, declarations of LLVM's intrinsics) is dropped, and so are comments that contain only a
link. One function in 25, drawn with a fixed seed, goes to OUTPUT_FOLDER/heldout, the others to OUTPUT_FOLDER/train.
Both folders keep the order of the sources and their division into files.
"""

import pathlib
import random
import re
import sys

SEED = 1
HELD_OUT = 1 / 25

# A pattern for a documented function without indentation: doc comment, attributes (which may span lines), signature and
# body.
FUNCTION = re.compile(
    r"^///[^\n]*\n(?:///[^\n]*\n|//[^\n]*\n)*"
    r"(?:#\[[^\n]*\]\n|#\[[^\n]*\n(?:[ \t][^\n]*\n)*\)\]\n)+"
    r"pub (?:unsafe )?fn [^{;]*\{(?:[^\n]*\}\n|[^\n]*\n(?:[ \t][^\n]*\n|\n)*\}\n)",
    re.MULTILINE,
)


def tidied(function: str) -> str:
    """Returns the function without doc lines that contain only a link, and without empty lines at the comment's end."""
    lines = [line for line in function.splitlines() if not re.fullmatch(r"/// \[.*\]\(http.*\)", line)]
    body = next(i for i, line in enumerate(lines) if not line.startswith("///"))
    while body > 1 and not lines[body - 1].removeprefix("///").strip():
        del lines[body - 1]
        body -= 1
    return "\n".join(line.rstrip() for line in lines) + "\n"


def main() -> None:
    sources, output = map(pathlib.Path, sys.argv[1:])
    draw = random.Random(SEED)
    for part in ("train", "heldout"):
        (output / part).mkdir(parents=True, exist_ok=True)
    written = {"train": [0, 0], "heldout": [0, 0]}
    for path in sorted(sources.rglob("*.rs")):
        parts: dict[str, list[str]] = {"train": [], "heldout": []}
        for function in FUNCTION.findall(path.read_text(encoding="utf-8")):
            parts["heldout" if draw.random() < HELD_OUT else "train"].append(tidied(function))
        name = "_".join(path.relative_to(sources).with_suffix("").parts) + ".txt"
        for part, functions in parts.items():
            if functions:
                text = "\n".join(functions)
                (output / part / name).write_text(text, encoding="utf-8")
                written[part][0] += len(functions)
                written[part][1] += len(text.encode())
    for part, (functions, size) in written.items():
        print(f"{output / part}: {functions} functions, {size} bytes")


main()
