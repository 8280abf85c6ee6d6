#!/usr/bin/env python3
"""Checks the subject of every commit after BASE: at most 72 characters, and an area before a colon.

    .ci/commits.py

A checkout without BASE, such as a shallow clone or an archive, has nothing to check.
"""

import re
import subprocess
import sys
from pathlib import Path

# Older subjects were written before the rules.
BASE = "25060b6c70c8a3ef6b410435fea07fe56a4e2aa9"
LONGEST = 72
AREA = re.compile(r"[a-z0-9][\w./,+ -]*: \S")


def faults(subject):
    """Yields what is wrong with a subject."""
    if len(subject) > LONGEST:
        yield f"{len(subject)} characters, expected at most {LONGEST}"
    if not AREA.match(subject):
        yield "no area before a colon, expected for example `attention: load states before the first use`"


def git(*arguments, cwd):
    return subprocess.run(["git", *arguments], cwd=cwd, capture_output=True, text=True)


def main():
    top = Path(__file__).resolve().parent.parent
    if git("cat-file", "-e", f"{BASE}^{{commit}}", cwd=top).returncode:
        print(f"this checkout does not contain commit {BASE[:7]}: no subjects to check")
        return False
    log = git("log", "--no-merges", "--format=%h %s", f"{BASE}..HEAD", cwd=top)
    log.check_returncode()
    failed = False
    for line in log.stdout.splitlines():
        commit, _, subject = line.partition(" ")
        for fault in faults(subject):
            failed = True
            print(f"{commit} {subject}\n    {fault}")
    return failed


if __name__ == "__main__":
    sys.exit(main())
