#!/usr/bin/env python3
"""Counts the phrases of .ci/idioms.txt in all tracked text, and fails if a phrase occurs more often than its limit.

.ci/test_idioms.py has an example of each phrase.

    .ci/idioms.py [--list]      --list prints every place
"""

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

PHRASES = ".ci/idioms.txt"
EXAMPLES = ".ci/test_idioms.py"


def phrases(text):
    """Yields the limit and the pattern of every line that is not a comment."""
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            limit, pattern = line.split("\t")
            yield int(limit), pattern


def places(files, pattern):
    """Yields the file, line number and text of every line that contains the pattern."""
    expression = re.compile(pattern, re.IGNORECASE)
    for name, text in files:
        for number, line in enumerate(text.splitlines(), 1):
            if expression.search(line):
                yield name, number, line.strip()


def tracked_text(top):
    names = subprocess.run(["git", "ls-files", "-z"], cwd=top, check=True, capture_output=True, text=True).stdout
    for name in names.split("\0"):
        if name and name not in (PHRASES, EXAMPLES) and (top / name).is_file():
            data = (top / name).read_bytes()
            if b"\0" not in data:
                yield name, data.decode("utf-8", "replace")


def main():
    top = Path(__file__).resolve().parent.parent
    files = list(tracked_text(top))
    failed = False
    for limit, pattern in phrases((top / PHRASES).read_text()):
        found = list(places(files, pattern))
        if "--list" in sys.argv:
            for name, number, line in found:
                print(f"{name}:{number}: {line}")
        if len(found) > limit:
            failed = True
            name, count = Counter(name for name, _, _ in found).most_common(1)[0]
            print(f"/{pattern}/ occurs {len(found)} times, the limit is {limit}; most often in {name} ({count})")
    return failed


if __name__ == "__main__":
    sys.exit(main())
