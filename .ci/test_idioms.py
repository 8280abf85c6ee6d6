#!/usr/bin/env python3
"""Tests of .ci/idioms.py: every pattern of .ci/idioms.txt finds its phrase, and no pattern finds plain sentences."""

import unittest
from pathlib import Path

from idioms import phrases, places

# A line for every pattern, in the order of the file.
FOUND = [
    "a type that there is not",
    "unknown value type 7, which there is",
    "so many rows",
    "as many as sequences",
    "nobody waits",
    "everybody waits",
    "ten rows, of which five are padding",
    "a row's bits are those of the reference",
    "an error of the door",
    "q, k and v in tensors of their own",
    "draws the tokens row after row",
    "the launch in front of it has ended",
    "drafts in the pass that verifies",
    "an index of -1 is no error",
    "    /// writes the norm for each row /// (arXiv 1910.07467)",
]
NOT_FOUND = [
    "a type that the library does not know",
    "ten rows, five of them padding",
    "separate tensors for q, k and v",
    "draws the tokens row by row",
    "begins before the previous launch has ended",
    "mask rows of the verification pass",
    "an index of -1 is not an error",
    "There is no distribution over zero ids.",
    "/// The norm of each row (arXiv 1910.07467).",
    "    // cargo run -- path //server/share",
    "| a table | of // slashes |",
]


class Phrases(unittest.TestCase):
    def setUp(self):
        text = Path(__file__).with_name("idioms.txt").read_text()
        self.patterns = [pattern for _, pattern in phrases(text)]

    def test_each_pattern_finds_its_phrase(self):
        self.assertEqual(len(FOUND), len(self.patterns))
        for line, pattern in zip(FOUND, self.patterns):
            self.assertEqual(list(places([("file", line)], pattern)), [("file", 1, line.strip())], pattern)

    def test_no_pattern_finds_plain_sentences(self):
        for pattern in self.patterns:
            self.assertEqual(list(places([("file", "\n".join(NOT_FOUND))], pattern)), [], pattern)


if __name__ == "__main__":
    unittest.main()
