#!/usr/bin/env python3
"""Tests of .ci/commits.py: which subjects pass, and which do not."""

import unittest

from commits import LONGEST, faults


class Subjects(unittest.TestCase):
    def test_subjects_that_pass(self):
        good = ["attention: move the merge into merge.cuh", "tests/loading, cli: name the file", "ci: " + "x" * 68]
        for subject in good:
            self.assertEqual(list(faults(subject)), [], subject)

    def test_subjects_that_fail(self):
        long = "ci: " + "x" * (LONGEST - 3)
        for subject in [long, "wip", "move the merge into merge.cuh", "attention:move", "Fix: a bug"]:
            self.assertEqual(len(list(faults(subject))), 1, subject)
        self.assertEqual(len(list(faults("x" * 73))), 2)


if __name__ == "__main__":
    unittest.main()
