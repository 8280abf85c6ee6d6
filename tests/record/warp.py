"""Records logits before and after transformers' logits warpers."""

import torch
from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from common import OUT, f32, write_rows

VOCAB = 40


def warp(logits, temperature, top_k, top_p, min_p):
    """Returns the warpers in the order of transformers' `generate`, without the inactive ones."""
    scores = logits[None].clone()
    warpers = [TemperatureLogitsWarper(temperature)]
    warpers += [TopKLogitsWarper(top_k)] if top_k > 0 else []
    warpers += [TopPLogitsWarper(top_p)] if top_p < 1 else []
    warpers += [MinPLogitsWarper(min_p)] if min_p > 0 else []
    for warper in warpers:
        scores = warper(None, scores)
    return scores[0]


def numbers(row):
    return [f32(x) if torch.isfinite(x) else None for x in row]


def main():
    generator = torch.Generator().manual_seed(40)
    choose = lambda options: options[torch.randint(len(options), (), generator=generator)]
    rows = []
    for index in range(50):
        logits = torch.randn(VOCAB, generator=generator) * choose([0.1, 1.0, 3.0, 10.0])
        match index % 10:
            case 6:  # extreme values
                logits[choose(range(VOCAB))] = choose([3e4, 1e30, 60.0])
                logits[choose(range(VOCAB))] = choose([-3e4, -1e30])
            case 7:  # tokens that a hook has forbidden
                forbidden = torch.randperm(VOCAB, generator=generator)[:25]
                logits[forbidden] = -float("inf")
            case 8:  # ties
                logits = (logits * 2).round() / 2
            case 9:  # ties at the top
                logits[torch.randperm(VOCAB, generator=generator)[:4]] = logits.max()
        finite = logits[torch.isfinite(logits)]
        settings = dict(
            temperature=choose([0.3, 0.7, 1.0, 1.7]),
            top_k=choose([0, 1, 5, 20, 40, 100]) if index % 5 != 0 else 0,
            top_p=choose([1.0, 0.95, 0.8, 0.3]),
            min_p=choose([0.0, 0.05, 0.3]),
        )
        scores = warp(logits, **settings)
        rows.append(
            dict(settings, ties=len(finite.unique()) < len(finite), logits=numbers(logits), scores=numbers(scores))
        )
    assert sum(not row["ties"] for row in rows) >= 38
    write_rows(OUT / "warp.json", {}, "rows", rows)


if __name__ == "__main__":
    main()
