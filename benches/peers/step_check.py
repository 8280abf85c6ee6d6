"""Tests that the steps of step.py follow the method: computes every row again by itself, from its definition, in f64.

A row is a position, the last position that it sees, and a group if it is a mask row. The computation shares nothing
with step.py: no mask, no batch, no fused product, rotations as complex numbers, softmax written out.
"""

import dataclasses
import math

import torch

from step_model import SHAPES, WAYS, Attention, Cache, Model, Step


@dataclasses.dataclass
class Row:
    hidden: torch.Tensor
    position: int
    limit: int
    group: int | None = None
    k: torch.Tensor | None = None
    v: torch.Tensor | None = None


def normed(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return x / math.sqrt(float((x * x).mean()) + eps) * weight


def turned(x: torch.Tensor, position: int, theta: float) -> torch.Tensor:
    """Rotates a head: returns each pair (i, i + d/2) as a complex number, times e^(i angle)."""
    half = len(x) // 2
    angles = torch.tensor([position * theta ** (-i / half) for i in range(half)], dtype=torch.float64)
    pair = torch.complex(x[:half].double(), x[half:].double()) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([pair.real, pair.imag]).to(x.dtype)


def heads(model: Model, weights: Attention, x: torch.Tensor, position: int):
    """Returns the query, key and value of a row, as lists of heads."""
    shape = model.shape
    dim, q, kv = shape.head_dim, shape.q_heads, shape.kv_heads
    every = [weights.qkv[i * dim : (i + 1) * dim] @ x for i in range(q + 2 * kv)]
    norms = [weights.q_norm] * q + [weights.k_norm] * kv
    for i, norm in enumerate(norms):
        if norm is not None:
            every[i] = normed(every[i], norm, shape.eps)
        every[i] = turned(every[i], position, shape.theta)
    return every[:q], every[q : q + kv], every[q + kv :]


def attended(model: Model, q: list, row: Row, past: list, rows: list[Row]) -> torch.Tensor:
    """Returns the attention output of a row's heads over `past` (positions with keys and values) and the rows of this
    pass."""
    shape, out = model.shape, []
    for i, query in enumerate(q):
        j = i // (shape.q_heads // shape.kv_heads)
        seen = [(k[j], v[j]) for position, k, v in past if position <= row.limit]
        for other in rows:
            same_group = other.group is not None and other.group == row.group
            if same_group or (other.group is None and other.position <= row.limit):
                seen.append((other.k[j], other.v[j]))
        scores = [math.exp(float(query @ k) / math.sqrt(shape.head_dim)) for k, _ in seen]
        out.append(sum(score / sum(scores) * v for score, (_, v) in zip(scores, seen)))
    return torch.cat(out)


def plain_pass(
    model: Model, past: list[list], tokens: list[int], start: int, groups: list[int], slots: int
) -> list[Row]:
    """Returns the hidden states of one sequence's rows after the last layer, computed row by row. `past` has positions
    with K and V of each layer; the candidates' K and V are added to it."""
    shape = model.shape
    rows = [Row(model.embed[token], start + i, start + i) for i, token in enumerate(tokens)]
    for layer in range(shape.layers):
        if layer == shape.layers - shape.tail:
            rows += [Row(model.mask_embedding, start + k + 1 + j, start + k, k) for k in groups for j in range(slots)]
        norm, post_norm = model.norms[layer]
        queries = []
        for row in rows:
            drafts = row.group is not None
            weights = model.drafter[layer - shape.layers + shape.tail] if drafts else model.attention[layer]
            q, row.k, row.v = heads(model, weights, normed(row.hidden, norm, shape.eps), row.position)
            queries.append((q, weights))
        outs = [weights.o @ attended(model, q, row, past[layer], rows) for row, (q, weights) in zip(rows, queries)]
        past[layer] += [(row.position, row.k, row.v) for row in rows if row.group is None]
        for row, out in zip(rows, outs):
            hidden = row.hidden + out
            both = model.gate_up[layer] @ normed(hidden, post_norm, shape.eps)
            gate, up = both[: shape.intermediate], both[shape.intermediate :]
            row.hidden = hidden + model.down[layer] @ (gate / (1 + torch.exp(-gate)) * up)
    return rows


def plain_draft(model: Model, slots: list[Row], bonus: int) -> torch.Tensor:
    """Returns the calibrated logits of slots 1 to S − 1 of a mask group."""
    found = []
    for row in slots[1:]:
        h = normed(row.hidden, model.final_norm, model.shape.eps)
        u = model.w1 @ torch.cat([model.embed[bonus], h]) + model.b1
        found.append(model.head @ h + model.w2 @ (u / (1 + torch.exp(-u))) + model.b2)
    return torch.stack(found)


def past_of(cache: Cache, sequence: int, positions: int) -> list[list]:
    pair = lambda k, v, p: (p, k[sequence, :, p].clone(), v[sequence, :, p].clone())  # noqa: E731
    return [[pair(k, v, p) for p in range(positions)] for k, v in zip(cache.k, cache.v)]


def compare(name: str, found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    error = float((found - expected).abs().max() / expected.abs().max())
    if not error < tolerance:
        raise SystemExit(f"{name}: a relative error of {error:.1e}, and {tolerance:.0e} is allowed")


def check_step(model: Model, mode: str, verify_len: int, groups: int, one_head: bool, tolerance: float) -> None:
    batch, start, slots, candidates, width = 2, 21, 4, verify_len + 1, model.shape.hidden
    cache = Cache(model, batch, start + candidates + 16 + (verify_len + 1) * slots)
    step = Step(model, cache, mode, start, verify_len, groups, slots)
    step.one_head = one_head and mode == "parallel"
    before = [past_of(cache, i, start) for i in range(batch)]
    # The first sequence accepts its whole draft, and the second all but one token, so that they draft from different
    # mask groups.
    for i in range(candidates):
        choice = step()["choice"]
        if i < verify_len:
            step.tokens[0, i + 1] = choice[0, i]
            step.tokens[1, i + 1] = choice[1, i] if i + 1 < verify_len else (choice[1, i] + 1) % model.shape.vocab
    for way in WAYS:
        step.way = way
        found = step()
        label = f"{mode}, v = {verify_len}, {groups} groups, {way}"
        for i in range(batch):
            accepted = max(verify_len - i, 0)
            if int(found["accepted"][i]) != accepted:
                raise SystemExit(f"{label}: {int(found['accepted'][i])} tokens accepted, not {accepted}")
            past = [list(layer) for layer in before[i]]
            lengths = list(range(candidates - groups, candidates)) if mode == "parallel" else []
            rows = plain_pass(model, past, step.tokens[i].tolist(), start, lengths, slots)
            expected = torch.stack([row.hidden for row in rows])
            split, masks = batch * candidates, len(lengths) * slots
            own = [found["hidden"][:split].view(batch, candidates, width)[i]]
            own.append(found["hidden"][split:].view(batch, masks, width)[i])
            compare(f"{label}: hidden states", torch.cat(own), expected, tolerance)
            compare(f"{label}: K of the last layer", cache.k[-1][i, :, start : start + candidates],
                    torch.stack([torch.stack(list(row.k)) for row in rows[:candidates]], 1), tolerance)
            if mode in ("ar", "verify"):
                continue
            # step.py times sequential drafting for the longest accepted length, whatever was accepted.
            group = accepted if mode == "parallel" else verify_len
            if mode == "sequential":
                rows = plain_pass(model, past, [], start, [verify_len], slots)
            those = [row for row in rows if row.group == max(group, candidates - groups if groups else 0)]
            logits = plain_draft(model, those, int(found["bonus"][i]))
            own = found["logits"].view(batch, slots - 1, -1)[i]
            compare(f"{label}: draft logits", own, logits, tolerance)
            if not torch.equal(found["draft"][i], own.argmax(-1)):
                raise SystemExit(f"{label}: the draft is not the most probable one")


def check() -> None:
    small = dataclasses.replace(SHAPES["tiny"], layers=3, hidden=24, intermediate=40, q_heads=4, kv_heads=2, head_dim=8,
                                vocab=50, tail=2, rank=6)
    shapes = {"Qwen3's": small, "Llama's": dataclasses.replace(small, qk_norms=False, q_heads=6, tied=False)}
    steps = [("ar", 0, 0), ("verify", 3, 0), ("sequential", 2, 0)]
    steps += [("parallel", 0, 1), ("parallel", 3, 4), ("parallel", 3, 2)]
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
        for name, shape in shapes.items():
            for mode, verify_len, groups in steps:
                for one_head in (False, True):
                    check_step(Model(shape, dtype, "cpu"), mode, verify_len, groups, one_head, tolerance)
            print(f"{name} shape in {dtype}: every row of {len(steps)} steps is that of the plain computation")
