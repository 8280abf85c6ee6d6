#!/usr/bin/env python3
"""Measures the acceptance length of drafts that counted pairs of tokens make, without a model: `bigrams.py DATA`, a
folder made by `flexdraft-tune data`.

Counts the pairs of consecutive tokens in train.jsonl, drafts the most likely chain of three tokens after the bonus token,
and walks heldout.jsonl with these drafts as decoding would step. Prints the acceptance length.
"""

import collections
import json
import pathlib
import sys

SLOTS = 3


def read(path: pathlib.Path) -> list[list[int]]:
    """Yields each transcript's response, preceded by the last token of its prompt."""
    transcripts = [json.loads(line) for line in path.read_text().splitlines()]
    return [transcript["prompt"][-1:] + transcript["response"] for transcript in transcripts]


def main() -> None:
    data = pathlib.Path(sys.argv[1])
    followers: dict = collections.defaultdict(collections.Counter)
    for tokens in read(data / "train.jsonl"):
        for token, follower in zip(tokens, tokens[1:]):
            followers[token][follower] += 1
    likeliest = {token: counts.most_common(1)[0][0] for token, counts in followers.items()}
    steps = committed = 0
    for tokens in read(data / "heldout.jsonl"):
        position = 1
        while position < len(tokens) - 1:
            token, length = tokens[position], 1
            while length <= SLOTS and position + length < len(tokens):
                token = likeliest.get(token)
                if token != tokens[position + length]:
                    break
                length += 1
            steps += 1
            committed += length
            position += length
    print(f"acceptance length {committed / steps:.3f} over {steps} steps")


if __name__ == "__main__":
    main()
