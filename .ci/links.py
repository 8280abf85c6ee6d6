#!/usr/bin/env python3
"""Checks that every relative link in the tracked Markdown files leads to a file or folder, and to a heading that exists.

    .ci/links.py
"""

import re
import subprocess
import sys
from pathlib import Path

LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def anchors(text):
    """Yields the anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    for heading in re.findall(r"^#+ +(.*)$", text, re.M):
        yield re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def broken(page, text):
    """Yields the line number and target of every link of a page that leads nowhere."""
    text = re.sub(r"^```.*?^```", lambda block: "\n" * block[0].count("\n"), text, flags=re.M | re.S)
    for number, line in enumerate(text.splitlines(), 1):
        for link in LINK.findall(re.sub(r"`[^`]*`(?!\])", "", line) if "](" not in line else line):
            if re.match(r"[a-z]+:", link):
                continue
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            if not target.exists():
                yield number, link
            elif anchor and target.suffix == ".md" and anchor not in anchors(target.read_text()):
                yield number, link


def main():
    top = Path(__file__).resolve().parent.parent
    names = subprocess.run(["git", "ls-files", "-z", "*.md"], cwd=top, check=True, capture_output=True, text=True)
    failed = False
    for name in filter(None, names.stdout.split("\0")):
        page = top / name
        if page.is_file():
            for number, link in broken(page, page.read_text()):
                failed = True
                print(f"{name}:{number}: {link} does not exist")
    return failed


if __name__ == "__main__":
    sys.exit(main())
