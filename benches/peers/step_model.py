"""The steps that step.py times: a target and its drafter with random weights, and the work of each mode in a step."""

import dataclasses

import torch
import torch.nn.functional as F


@dataclasses.dataclass(frozen=True)
class Shape:
    layers: int
    hidden: int
    intermediate: int
    q_heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool
    # Number of layers with the drafter's attention projectors, and the rank of its calibrator.
    tail: int
    rank: int = 512
    qk_norms: bool = True
    theta: float = 1e6
    eps: float = 1e-6


# These model shapes are the same as in `flexdraft bench --synthetic`.
SHAPES = {
    "tiny": Shape(4, 64, 128, 2, 1, 64, 384, True, 2, rank=64),
    "smollm2-135m": Shape(30, 576, 1536, 9, 3, 64, 49152, True, 8, qk_norms=False, theta=1e5, eps=1e-5),
    "qwen3-0.6b": Shape(28, 1024, 3072, 16, 8, 128, 151936, True, 8),
    "qwen3-8b": Shape(36, 4096, 12288, 32, 8, 128, 151936, False, 10),
}

# The largest number of rows for which one product with the LM head for the candidates and all mask groups is cheaper
# than two products.
ROWS_OF_ONE_HEAD = 256


@dataclasses.dataclass
class Attention:
    qkv: torch.Tensor  # [(q_heads + 2 kv_heads) head_dim, hidden]
    o: torch.Tensor  # [hidden, q_heads head_dim]
    q_norm: torch.Tensor | None  # [head_dim]
    k_norm: torch.Tensor | None


class Model:
    """A target and its drafter with random weights."""

    def __init__(self, shape: Shape, dtype: torch.dtype, device: str, seed: int = 1):
        self.shape, self.dtype, self.device = shape, dtype, device
        self.generator = torch.Generator(device).manual_seed(seed)
        hidden, rank = shape.hidden, shape.rank
        self.embed = self.matrix(shape.vocab, hidden)
        self.head = self.embed if shape.tied else self.matrix(shape.vocab, hidden)
        self.attention = [self.heads() for _ in range(shape.layers)]
        self.drafter = [self.heads() for _ in range(shape.tail)]
        self.gate_up = [self.matrix(2 * shape.intermediate, hidden) for _ in range(shape.layers)]
        self.down = [self.matrix(hidden, shape.intermediate) for _ in range(shape.layers)]
        self.norms = [(self.norm(hidden), self.norm(hidden)) for _ in range(shape.layers)]
        self.final_norm = self.norm(hidden)
        self.mask_embedding = self.noise(hidden)
        self.w1, self.b1 = self.matrix(rank, 2 * hidden), self.noise(rank) * 0.1
        self.w2, self.b2 = self.matrix(shape.vocab, rank), self.noise(shape.vocab) * 0.1

    def noise(self, *size: int) -> torch.Tensor:
        return torch.empty(size, dtype=self.dtype, device=self.device).normal_(generator=self.generator)

    def matrix(self, rows: int, cols: int) -> torch.Tensor:
        return self.noise(rows, cols).mul_(cols**-0.5)

    def norm(self, cols: int) -> torch.Tensor:
        return self.noise(cols).mul_(0.1).add_(1.0)

    def heads(self) -> Attention:
        shape = self.shape
        rows = (shape.q_heads + 2 * shape.kv_heads) * shape.head_dim
        norms = [self.norm(shape.head_dim) if shape.qk_norms else None for _ in range(2)]
        qkv, o = self.matrix(rows, shape.hidden), self.matrix(shape.hidden, shape.q_heads * shape.head_dim)
        return Attention(qkv, o, *norms)


class Cache:
    """The keys and values of every layer, `[batch, kv_heads, positions, head_dim]`, filled with random numbers."""

    def __init__(self, model: Model, batch: int, positions: int):
        size = (batch, model.shape.kv_heads, positions, model.shape.head_dim)
        self.batch = batch
        self.k, self.v = ([model.noise(*size) for _ in range(model.shape.layers)] for _ in range(2))


class Pass:
    """The rows of one pass, the same for every sequence: candidates after `start` positions, then the slots of a mask
    group for each accepted length of `groups`. After the pass, `cached` positions have K and V in the cache."""

    def __init__(
        self, model: Model, batch: int, start: int, candidates: int, cached: int, groups: list[int], slots: int
    ):
        self.batch, self.candidates, self.cached = batch, candidates, cached
        self.groups, self.slots, self.masks = groups, slots, len(groups) * slots
        positions = [start + i for i in range(candidates)] + [start + k + 1 + j for k in groups for j in range(slots)]
        limits = [start + i for i in range(candidates)] + [start + k for k in groups for _ in range(slots)]
        owners = [-1] * candidates + [k for k in groups for _ in range(slots)]
        device = model.device
        self.candidate_turns = self.turns(model, positions[:candidates])
        self.mask_turns = self.turns(model, positions[candidates:])
        self.keys = cached + self.masks
        self.mask = None
        if candidates != 1 or groups:
            # The mask is padded to whole vectors of columns, because PyTorch's attention kernels that take a mask need
            # this.
            self.keys = -(-self.keys // 16) * 16
            limits = torch.tensor(limits, device=device)[:, None]
            key = torch.arange(self.keys, device=device)
            owners = torch.tensor(owners, device=device)[:, None]
            key_owners = torch.tensor([-2] * cached + owners.flatten().tolist()[candidates:], device=device)
            key_owners = F.pad(key_owners, (0, self.keys - len(key_owners)), value=-2)
            seen = ((key < cached) & (key <= limits)) | (key_owners == owners)
            self.mask = torch.zeros(seen.shape, dtype=model.dtype, device=device).masked_fill_(~seen, float("-inf"))
            self.folded_mask = self.mask.repeat(model.shape.q_heads // model.shape.kv_heads, 1)

    def turns(self, model: Model, positions: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the cosines and sines that rotate every row of the batch, `[rows, 1, head_dim]`."""
        dim = model.shape.head_dim
        frequency = model.shape.theta ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
        angle = torch.tensor(positions, dtype=torch.float64)[:, None] * frequency
        angle = torch.cat([angle, angle], -1).repeat(self.batch, 1)[:, None]
        return tuple(turn.to(model.device, model.dtype) for turn in (angle.cos(), angle.sin()))


def rotated(x: torch.Tensor, turns: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    low, high = x.chunk(2, -1)
    return x * turns[0] + torch.cat([-high, low], -1) * turns[1]


def sdpa(way: str, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rows: Pass) -> torch.Tensor:
    """Returns the attention of q `[batch, rows, q_heads, head_dim]` over k, v `[batch, kv_heads, keys, head_dim]`,
    shaped as q."""
    batch, length, q_heads, dim = q.shape
    group = q_heads // k.shape[1]
    if way == "fold":
        # The query heads that share a KV head become further rows of a single head.
        q = q.view(batch, length, -1, group, dim).permute(0, 2, 3, 1, 4).reshape(batch, -1, group * length, dim)
        mask = rows.folded_mask if rows.mask is not None else None
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return out.view(batch, -1, group, length, dim).permute(0, 3, 1, 2, 4).reshape(batch, length, q_heads, dim)
    if way == "repeat":
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k, v, attn_mask=rows.mask, enable_gqa=way == "gqa")
    return out.transpose(1, 2)


WAYS = ("fold", "gqa", "repeat")


def attend(model: Model, cache: Cache, layer: int, x: torch.Tensor, rows: Pass, masks: int, way: str) -> torch.Tensor:
    """Returns one layer's attention output for normed rows: all candidates of the batch, then, in the tail, all mask
    rows."""
    shape, batch = model.shape, rows.batch
    split = batch * rows.candidates
    q_cols, kv_cols = shape.q_heads * shape.head_dim, shape.kv_heads * shape.head_dim
    parts, queries = [], []
    if split:
        parts.append((model.attention[layer], x[:split], rows.candidate_turns, rows.cached - rows.candidates))
    if masks:
        drafter = model.drafter[layer - (shape.layers - shape.tail)]
        parts.append((drafter, x[split:], rows.mask_turns, rows.cached))
    for weights, part, turns, first in parts:
        q, k, v = F.linear(part, weights.qkv).split([q_cols, kv_cols, kv_cols], -1)
        q, k, v = (heads.unflatten(-1, (-1, shape.head_dim)) for heads in (q, k, v))
        if weights.q_norm is not None:
            q = F.rms_norm(q, (shape.head_dim,), weights.q_norm, shape.eps)
            k = F.rms_norm(k, (shape.head_dim,), weights.k_norm, shape.eps)
        q, k = rotated(q, turns), rotated(k, turns)
        queries.append(q.unflatten(0, (batch, -1)))
        for memory, heads in ((cache.k[layer], k), (cache.v[layer], v)):
            heads = heads.unflatten(0, (batch, -1)).transpose(1, 2)
            memory[:, :, first : first + heads.shape[2]] = heads
    k, v = cache.k[layer][:, :, : rows.keys], cache.v[layer][:, :, : rows.keys]
    query = torch.cat(queries, 1) if len(queries) > 1 else queries[0]
    out = sdpa(way, query, k, v, rows)
    out = out.split([q.shape[1] for q in queries], 1)
    out = [part.flatten(2).flatten(0, 1) for part in out]
    return torch.cat([F.linear(part, weights.o) for part, (weights, *_) in zip(out, parts)])


def forward(
    model: Model, cache: Cache, tokens: torch.Tensor | None, rows: Pass, head_rows: Pass, way: str
) -> torch.Tensor:
    """Returns the hidden states of all rows after the last layer, `[batch (candidates + masks), hidden]`. `head_rows`
    are the rows of the layers before the tail: the candidates."""
    shape = model.shape
    hidden = F.embedding(tokens.flatten(), model.embed) if rows.candidates else None
    for layer in range(shape.layers):
        in_tail = layer >= shape.layers - shape.tail and rows.masks > 0
        if in_tail and layer == shape.layers - shape.tail:
            masks = model.mask_embedding.expand(rows.batch * rows.masks, -1)
            hidden = masks if hidden is None else torch.cat([hidden, masks])
        if hidden is None:
            continue
        these, masks = (rows, rows.masks) if in_tail else (head_rows, 0)
        norm, post_norm = model.norms[layer]
        x = F.rms_norm(hidden, (shape.hidden,), norm, shape.eps)
        hidden = hidden + attend(model, cache, layer, x, these, masks, way)
        x = F.rms_norm(hidden, (shape.hidden,), post_norm, shape.eps)
        gate, up = F.linear(x, model.gate_up[layer]).chunk(2, -1)
        hidden = hidden + F.linear(F.silu(gate) * up, model.down[layer])
    return hidden


def head(model: Model, hidden: torch.Tensor) -> torch.Tensor:
    return F.linear(F.rms_norm(hidden, (model.shape.hidden,), model.final_norm, model.shape.eps), model.head)


def picked(x: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
    """Gathers, for each sequence, the rows of x whose indices are in `place` `[batch, rows, 1]`."""
    batch, width = place.shape[0], x.shape[-1]
    return x.view(batch, -1, width).gather(1, place.expand(-1, -1, width)).flatten(0, 1)


class Step:
    """One decode step of a mode for every sequence, which can be run repeatedly."""

    def __init__(self, model: Model, cache: Cache, mode: str, start: int, verify_len: int, groups: int, slots: int):
        self.model, self.cache, self.mode = model, cache, mode
        self.verify_len, self.groups, self.slots, batch = verify_len, groups, slots, cache.batch
        candidates = verify_len + 1
        lengths = list(range(verify_len + 1 - groups, verify_len + 1)) if mode == "parallel" else []
        new = lambda *rows: Pass(model, batch, start, *rows, slots)  # noqa: E731
        self.head_rows = new(candidates, start + candidates, [])
        self.rows = new(candidates, start + candidates, lengths) if lengths else self.head_rows
        self.drafting = new(0, start + candidates, [verify_len]) if mode == "sequential" else None
        rows = batch * (candidates + len(lengths) * slots)
        self.one_head = bool(lengths) and rows <= ROWS_OF_ONE_HEAD
        self.way = "fold"
        vocab = model.shape.vocab
        self.tokens = torch.randint(vocab, (batch, candidates), generator=model.generator, device=model.device)

    def __call__(self) -> dict[str, torch.Tensor]:
        """Returns the verdicts, and the draft for the next step if the mode drafts."""
        model, batch, candidates = self.model, self.cache.batch, self.verify_len + 1
        hidden = forward(model, self.cache, self.tokens, self.rows, self.head_rows, self.way)
        split = batch * candidates
        logits = head(model, hidden if self.one_head else hidden[:split])
        choice = logits[:split].argmax(-1).view(batch, candidates)
        same = (choice[:, :-1] == self.tokens[:, 1:]).to(torch.int64)
        accepted = same.cumprod(1).sum(1, keepdim=True)
        bonus = choice.gather(1, accepted)
        found = {"hidden": hidden, "accepted": accepted, "bonus": bonus, "choice": choice}
        if self.mode == "parallel":
            # The draft comes from the mask group of the accepted length, or from the first group if that length has no
            # group.
            first = candidates - self.groups
            group = (accepted - first).clamp(min=0)
            place = (group * self.slots + torch.arange(1, self.slots, device=model.device))[:, :, None]
            slots = picked(hidden[split:], place)
            logits = picked(logits[split:], place) if self.one_head else head(model, slots)
            return found | self.draft(slots, bonus, logits)
        if self.mode == "sequential":
            hidden = forward(model, self.cache, None, self.drafting, self.drafting, self.way)
            slots = hidden.view(batch, self.slots, -1)[:, 1:].flatten(0, 1)
            return found | {"slots": hidden} | self.draft(slots, bonus, head(model, slots))
        return found

    def draft(self, slots: torch.Tensor, bonus: torch.Tensor, logits: torch.Tensor) -> dict[str, torch.Tensor]:
        """Applies Bonus-guided Calibration, logits + W2 silu(W1 [embed(bonus); h] + b1) + b2, and returns the most
        probable tokens."""
        model, width = self.model, self.model.shape.hidden
        normed = F.rms_norm(slots, (width,), model.final_norm, model.shape.eps)
        own = F.linear(normed, model.w1[:, width:]).view(self.cache.batch, self.slots - 1, -1)
        shared = F.linear(F.embedding(bonus, model.embed), model.w1[:, :width], model.b1)
        u = F.silu(own + shared).flatten(0, 1)
        logits = torch.addmm(logits + model.b2, u, model.w2.T)
        return {"logits": logits, "draft": logits.argmax(-1).view(self.cache.batch, -1)}
