"""Records greedy continuations of the tiny target with transformers' logits processors, in the order of the method."""

import torch
from transformers import AutoModelForCausalLM
from transformers.generation.logits_process import (
    MinNewTokensLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
)

from common import OUT, TINY, f32, write_rows

LENGTH = 24
# The smallest gap that a recording may have between two logits; closer logits could change places in another program.
LEAST_GAP = 1e-3


def processors(prompt, case):
    """Returns transformers' logits processors that a case uses, in the order in which they act."""
    active = []
    if case["repetition_penalty"] != 1:
        active.append(RepetitionPenaltyLogitsProcessor(case["repetition_penalty"]))
    if case["logit_bias"]:
        active.append(SequenceBiasLogitsProcessor({(id,): bias for id, bias in case["logit_bias"]}))
    if case["min_tokens"] > 0:
        stop = torch.tensor(case["stop_ids"])
        active.append(MinNewTokensLengthLogitsProcessor(len(prompt), case["min_tokens"], stop))
    if case["bad_words"]:
        active.append(NoBadWordsLogitsProcessor(case["bad_words"]))
    return active


@torch.no_grad()
def continuation(model, prompt, case):
    """Returns the greedy tokens, and the smallest gap between the two largest scores of a row."""
    tokens, gap = list(prompt), float("inf")
    active = processors(prompt, case)
    while len(tokens) < len(prompt) + LENGTH:
        ids = torch.tensor([tokens])
        scores = model(ids).logits[:, -1]
        for processor in active:
            scores = processor(ids, scores)
        best = scores[0].topk(2).values
        gap = min(gap, float(best[0] - best[1]))
        tokens.append(int(scores[0].argmax()))
        if tokens[-1] in case["stop_ids"]:
            break
    return tokens[len(prompt) :], gap


def draw_case(generator, index, model, prompt):
    """Draws a random case: the parameters of the logits processors. Words, biases and stop ids come from the plain
    continuation, so that they act."""
    choose = lambda options: options[torch.randint(len(options), (), generator=generator)]
    plain = dict(repetition_penalty=1.0, logit_bias=[], min_tokens=0, stop_ids=[], bad_words=[])
    free, _ = continuation(model, prompt, plain)
    vocab = model.config.vocab_size
    case, kinds = dict(plain), [1, 2, 4, 8, 15, 3, 5, 10, 12, 7][index % 10]
    if kinds & 1:
        case["repetition_penalty"] = f32(choose([0.8, 1.1, 1.3, 1.8]))
    if kinds & 2:
        ids = sorted({choose(free), choose(free), choose(range(vocab))})
        case["logit_bias"] = [[id, f32(choose([-6.0, -1.5, 0.75, 2.0]))] for id in ids]
    if kinds & 4:
        case["stop_ids"] = sorted({free[2], choose(free)})
        case["min_tokens"] = choose([4, 9, 15])
    if kinds & 8:
        at = choose(range(1, 8))
        case["bad_words"] = [[free[at]], free[at + 2 : at + 4], free[at + 5 : at + 8], [prompt[-1], free[0]]]
        case["bad_words"] = [word for word in case["bad_words"] if word not in [[id] for id in case["stop_ids"]]]
    return case, free


def main():
    model = AutoModelForCausalLM.from_pretrained(TINY / "target", dtype=torch.float32, attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(22)
    rows, changed = [], 0
    while len(rows) < 40:
        length = int(torch.randint(3, 12, (), generator=generator))
        prompt = torch.randint(model.config.vocab_size, (length,), generator=generator).tolist()
        case, free = draw_case(generator, len(rows), model, prompt)
        tokens, gap = continuation(model, prompt, case)
        if gap < LEAST_GAP:
            continue
        changed += tokens != free
        rows.append(dict(prompt=prompt, **case, tokens=tokens))
    assert changed >= 36, changed
    write_rows(OUT / "processors.json", {"max_new_tokens": LENGTH}, "rows", rows)


if __name__ == "__main__":
    main()
