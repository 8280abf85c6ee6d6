#!/usr/bin/env python3
"""Draws first sentences of docs and comments, to be read by somebody who has not seen the code.

    .ci/first_sentences.py SEED COUNT [PATH...]     COUNT sentences, the same for the same seed and tree
    .ci/first_sentences.py --list [PATH...]         all sentences

A path is a folder or file; without one, every tracked source and Markdown file is read.
"""

import random
import re
import subprocess
import sys
from pathlib import Path

SLASHES = {".rs", ".cu", ".cuh", ".h", ".cpp"}
HASHES = {".py", ".sh", ".toml", ""}
ABBREVIATIONS = ("e.g", "i.e", "al", "vs")


def comment_blocks(text, suffix):
    """Yields the line number and the lines of every block of neighbouring comments of the same kind."""
    marker = re.compile(r"\s*(//[/!]?|#)(?![!/#])\s?(.*)" if suffix in SLASHES else r"\s*(#)(?!!)\s?(.*)")
    blocks, last = [], None
    for number, line in enumerate(text.splitlines(), 1):
        found = marker.fullmatch(line)
        if not found or (suffix in SLASHES and found[1] == "#"):
            last = None
            continue
        kind, words = found[1], found[2].strip()
        if kind == last:
            blocks[-1][1].append(words)
        else:
            blocks.append((number, [words]))
        last = kind
    for number, lines in blocks:
        while lines and not lines[0]:
            lines.pop(0)
        yield number, lines


def docstrings(text):
    for found in re.finditer(r'^\s*"""(.*?)"""', text, re.M | re.S):
        yield text.count("\n", 0, found.start(1)) + 1, [line.strip() for line in found[1].splitlines()]


def paragraphs(text):
    """Yields the paragraphs of a Markdown page, without code, tables, lists and headings."""
    text = re.sub(r"^```.*?^```", lambda block: "\n" * block[0].count("\n"), text, flags=re.M | re.S)
    number = 1
    for block in re.split(r"(\n\s*\n)", text):
        if block.strip() and not re.match(r"\s*([#|<!-]|\d+\. )", block):
            lines = block.strip("\n").splitlines()
            yield number + len(block) - len(block.lstrip("\n")), [line.strip() for line in lines]
        number += block.count("\n")


def first_sentence(lines):
    """Returns the words up to the first full stop or empty line."""
    words = []
    for line in lines:
        if not line or line.startswith(("```", "| ", "# ")):
            break
        words.append(line)
    text = " ".join(words)
    for stop in re.finditer(r"[.!?:](?=\s|$)", text):
        before = text[: stop.start()]
        if stop[0] != ":" and not before.endswith(ABBREVIATIONS) and before.count("`") % 2 == 0:
            return text[: stop.end()]
    return text


def sentences(name, text):
    """Yields the line number and first sentence of every doc and comment of a file."""
    suffix = Path(name).suffix
    if suffix == ".md":
        blocks = paragraphs(text)
    elif suffix == ".py":
        blocks = sorted([*comment_blocks(text, suffix), *docstrings(text)])
    else:
        blocks = comment_blocks(text, suffix)
    for number, lines in blocks:
        sentence = first_sentence(lines)
        if len(sentence.split()) > 1 and not sentence.startswith(("SAFETY:", "SPDX")):
            yield number, sentence


def tracked(top, paths):
    command = ["git", "ls-files", "-z", "--", *paths]
    names = subprocess.run(command, cwd=top, check=True, capture_output=True, text=True).stdout
    for name in filter(None, names.split("\0")):
        suffix = Path(name).suffix
        if (suffix in SLASHES or suffix == ".md" or suffix in HASHES) and (top / name).is_file():
            if "fixtures" not in name and not name.startswith("LICENSE"):
                yield name, (top / name).read_text()


def main():
    top = Path(__file__).resolve().parent.parent
    listed = sys.argv[1:2] == ["--list"]
    if not listed and len(sys.argv) < 3:
        sys.exit(__doc__)
    paths = sys.argv[2:] if listed else sys.argv[3:]
    found = [(name, *place) for name, text in tracked(top, paths) for place in sentences(name, text)]
    if not listed:
        found = random.Random(int(sys.argv[1])).sample(found, min(int(sys.argv[2]), len(found)))
    for name, number, sentence in found:
        print(f"{name}:{number}: {sentence}")


if __name__ == "__main__":
    main()
