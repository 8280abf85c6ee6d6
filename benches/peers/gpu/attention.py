"""Compares joint draft-and-verify attention: flexdraft, PyTorch (dense, FlexAttention), FlashInfer, FlashAttention.

Each peer gets its preferred input: contiguous keys and values if it needs them, and masks and plans made beforehand. A
decode step would pay for making them each time; this cost is a separate line if it can be timed.
"""

import dataclasses

import torch
import torch.nn.functional as F

from common import noise, relative_error


@dataclasses.dataclass(frozen=True)
class Shape:
    """The shape of a batch of equal sequences: candidates at positions context.., and a mask group of slots after each
    accepted length 0, 1, …"""

    batch: int
    context: int
    candidates: int
    groups: int
    slots: int = 16
    q_heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128
    page_size: int = 64

    @property
    def seen(self) -> int:
        """Returns the number of cached positions of a sequence that at least one row attends to."""
        return self.context + max(self.candidates, self.groups)

    @property
    def rows(self) -> int:
        return self.candidates + self.groups * self.slots

    @property
    def keys(self) -> int:
        """Returns the number of keys of a sequence: the cached keys, followed by the keys of its mask groups' slots."""
        return self.seen + self.groups * self.slots


PASSES = [(5, 5), (0, 1), (16, 16), (1, 0)]
LOADS = [(16, 8192), (1, 8192), (4, 8192), (16, 1024), (64, 1024), (1, 1024), (1, 32768), (4, 32768)]


def shapes(small: bool) -> list[Shape]:
    if small:
        return [Shape(2, 70, 3, 2, slots=4, q_heads=4, kv_heads=2, head_dim=64, page_size=16),
                Shape(1, 40, 0, 1, slots=4, q_heads=3, kv_heads=1, head_dim=64, page_size=16)]
    return [Shape(*load, *rows) for load in LOADS for rows in PASSES]


class Case:
    """The random operands of attention for a shape, in the layout that each implementation needs."""

    def __init__(self, shape: Shape, device: str):
        self.shape, self.device = shape, device
        batch, heads, dim = shape.batch, shape.kv_heads, shape.head_dim
        each = -(-shape.seen // shape.page_size)
        width = (shape.q_heads + 2 * heads) * dim
        # The rows of q, k and v are in the order of a pass: every sequence's candidates, then every sequence's mask
        # rows.
        self.qkv = noise((batch * shape.rows, width), 1, device)
        self.k, self.v = (noise((each * batch, shape.page_size, heads, dim), seed, device) for seed in (2, 3))
        # The cache pages of a sequence are neither adjacent nor in order.
        pages = torch.arange(each - 1, -1, -1, device=device)
        self.page_ids = pages[None, :] * batch + torch.arange(batch, device=device)[:, None]

        per_sequence = self.per_sequence(self.qkv)
        q, own_k, own_v = per_sequence.split([shape.q_heads * dim, heads * dim, heads * dim], -1)
        split = lambda x, count: x.reshape(batch, -1, count, dim)
        self.q = split(q, shape.q_heads).contiguous()  # [batch, rows, heads, dim]
        masks = slice(shape.candidates, None)
        contiguous = lambda cache, own: torch.cat(
            [cache[self.page_ids].reshape(batch, -1, heads, dim)[:, : shape.seen], split(own[:, masks], heads)], 1)
        self.keys, self.values = contiguous(self.k, own_k), contiguous(self.v, own_v)  # [batch, keys, heads, dim]
        self.visible = visible(shape, device)

    def per_sequence(self, rows: torch.Tensor) -> torch.Tensor:
        """Reorders rows from the order of a pass to [batch, rows, columns]."""
        batch, candidates = self.shape.batch, self.shape.candidates
        first, rest = rows.split([batch * candidates, rows.shape[0] - batch * candidates])
        columns = rows.shape[-1]
        return torch.cat([first.view(batch, candidates, columns),
                          rest.view(batch, self.shape.rows - candidates, columns)], 1)

    def reference(self) -> torch.Tensor:
        """Returns the reference output in f32, computed for one sequence and KV head at a time."""
        shape, group = self.shape, self.shape.q_heads // self.shape.kv_heads
        out = torch.empty_like(self.q, dtype=torch.float32)
        for b in range(shape.batch):
            for head in range(shape.kv_heads):
                heads = slice(head * group, (head + 1) * group)
                q = self.q[b, :, heads].float().transpose(0, 1)
                scores = q @ self.keys[b, :, head].float().T / shape.head_dim**0.5
                scores.masked_fill_(~self.visible, float("-inf"))
                out[b, :, heads] = (scores.softmax(-1) @ self.values[b, :, head].float()).transpose(0, 1)
        return out


def visible(shape: Shape, device: str) -> torch.Tensor:
    """Returns the attention mask [rows, keys]: candidate i sees positions 0..=n+i, rows of group k see 0..=n+k and
    their own group."""
    rows, keys = torch.arange(shape.rows, device=device)[:, None], torch.arange(shape.keys, device=device)[None, :]
    slots = max(shape.slots, 1)
    mask, group = rows >= shape.candidates, (rows - shape.candidates) // slots
    limit = shape.context + torch.where(mask, group, rows)
    own = mask & (keys >= shape.seen) & ((keys - shape.seen) // slots == group)
    return torch.where(keys < shape.seen, keys <= limit, own)


def flexdraft(case: Case, ours):
    out = torch.empty((case.shape.batch * case.shape.rows, case.shape.q_heads * case.shape.head_dim),
                      dtype=torch.bfloat16, device=case.device)
    return ours.attention(case.shape, case.qkv, case.k, case.v, case.page_ids, out)


def heads_first(case: Case):
    return [x.transpose(1, 2).contiguous() for x in (case.q, case.keys, case.values)]


def sdpa(case: Case):
    """Prepares scaled_dot_product_attention with the dense mask, as the official implementation calls it."""
    q, k, v = heads_first(case)
    mask = case.visible[None, None]
    grouped = case.shape.q_heads != case.shape.kv_heads
    return lambda: F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped).transpose(1, 2)


def flex_attention(case: Case, compiled: bool):
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention as flex

    shape = case.shape
    seen, candidates, context, slots = shape.seen, shape.candidates, shape.context, max(shape.slots, 1)

    def rule(_batch, _head, row, key):
        mask, group = row >= candidates, (row - candidates) // slots
        limit = context + torch.where(mask, group, row)
        return torch.where(key < seen, key <= limit, mask & ((key - seen) // slots == group))

    q, k, v = heads_first(case)
    blocks = create_block_mask(rule, None, None, shape.rows, shape.keys, device=case.device)
    function = torch.compile(flex, dynamic=False) if compiled else flex
    grouped = shape.q_heads != shape.kv_heads
    return lambda: function(q, k, v, block_mask=blocks, enable_gqa=grouped).transpose(1, 2)


def flashinfer_mask(case: Case, runtime: str):
    """Prepares FlashInfer with the mask as bits, over contiguous keys."""
    import flashinfer

    shape = case.shape
    counts = torch.arange(shape.batch + 1, dtype=torch.int32, device=case.device)
    wrapper = flashinfer.BatchPrefillWithRaggedKVCacheWrapper(workspace(case), "NHD", runtime=runtime)
    wrapper.plan(counts * shape.rows, counts * shape.keys, shape.q_heads, shape.kv_heads, shape.head_dim,
                 custom_mask=case.visible.expand(shape.batch, -1, -1).reshape(-1), q_data_type=torch.bfloat16)
    flat = [x.reshape(-1, *x.shape[2:]).contiguous() for x in (case.q, case.keys, case.values)]
    return lambda: wrapper.run(*flat).view(case.q.shape)


def flashinfer_merged(case: Case, runtime: str):
    """Prepares FlashInfer: attention without a mask over the paged prefix that every row sees, merged with masked
    attention over the other keys."""
    import flashinfer

    shape, device = case.shape, case.device
    counts = torch.arange(shape.batch + 1, dtype=torch.int32, device=device)
    each = -(-shape.context // shape.page_size)
    prefix = flashinfer.BatchPrefillWithPagedKVCacheWrapper(workspace(case), "NHD", runtime=runtime)
    last = torch.full((shape.batch,), shape.context - (each - 1) * shape.page_size, dtype=torch.int32, device=device)
    prefix.plan(counts * shape.rows, counts * each, case.page_ids[:, :each].to(torch.int32).reshape(-1).contiguous(), last,
                shape.q_heads, shape.kv_heads, shape.head_dim, shape.page_size, causal=False,
                q_data_type=torch.bfloat16)
    keys = shape.keys - shape.context
    tail = flashinfer.BatchPrefillWithRaggedKVCacheWrapper(workspace(case), "NHD", runtime="fa2")
    mask = case.visible[:, shape.context :].expand(shape.batch, -1, -1).reshape(-1).contiguous()
    tail.plan(counts * shape.rows, counts * keys, shape.q_heads, shape.kv_heads, shape.head_dim, custom_mask=mask,
              q_data_type=torch.bfloat16)
    q = case.q.reshape(-1, shape.q_heads, shape.head_dim).contiguous()
    k, v = (x[:, shape.context :].reshape(-1, shape.kv_heads, shape.head_dim).contiguous() for x in (case.keys, case.values))

    def launch():
        first = prefix.run(q, (case.k, case.v), return_lse=True)
        second = tail.run(q, k, v, return_lse=True)
        return flashinfer.merge_state(*first, *second)[0].view(case.q.shape)

    return launch


def workspace(case: Case) -> torch.Tensor:
    return torch.zeros(256 << 20, dtype=torch.uint8, device=case.device)


def flash_attention(case: Case):
    """Prepares FlashAttention 4 without a mask over the prefix, merged by log-sum-exps with PyTorch's attention over
    the other keys."""
    from flash_attn.cute.interface import flash_attn_func

    shape, group = case.shape, case.shape.q_heads // case.shape.kv_heads
    k, v = (x[:, : shape.context].contiguous() for x in (case.keys, case.values))
    q = case.q.transpose(1, 2).unflatten(1, (shape.kv_heads, group))
    tail_k, tail_v = (x[:, shape.context :].transpose(1, 2).unsqueeze(2) for x in (case.keys, case.values))
    hidden = ~case.visible[:, shape.context :]

    def launch():
        first, first_lse = flash_attn_func(case.q, k, v, causal=False, return_lse=True)[:2]
        scores = (q @ tail_k.transpose(-1, -2)).float() / shape.head_dim**0.5
        scores = scores.masked_fill(hidden, float("-inf"))
        tail_lse = scores.logsumexp(-1)
        second = (scores.sub(tail_lse.unsqueeze(-1)).exp().to(v.dtype) @ tail_v).flatten(1, 2)
        share = torch.sigmoid(tail_lse.flatten(1, 2) - first_lse).unsqueeze(-1).transpose(1, 2)
        return torch.lerp(first.float(), second.transpose(1, 2).float(), share).to(first.dtype)

    return launch


def run(comparison, ours, device: str, small: bool):
    for shape in shapes(small):
        try:
            case = Case(shape, device)
            expected = case.reference()
        except torch.OutOfMemoryError as problem:
            comparison.record.add({"family": "attention", "shape": dataclasses.asdict(shape), "skipped": str(problem)})
            continue
        launch = flexdraft(case, ours)
        ways = {
            "flexdraft": lambda: (launch, None),
            "PyTorch SDPA, dense mask": lambda: (sdpa(case), None),
            "PyTorch FlexAttention": lambda: (flex_attention(case, compiled=device == "cuda"), None),
        }
        if device == "cuda":
            for runtime in ("fa2", "auto"):
                ways[f"FlashInfer {runtime}, merged"] = lambda b=runtime: (flashinfer_merged(case, b), None)
                ways[f"FlashInfer {runtime}, custom mask"] = lambda b=runtime: (flashinfer_mask(case, b), None)
            ways["FlashAttention 4, merged"] = lambda: (flash_attention(case), None)
        # The rows of flexdraft's output are in the order of a pass, so they are reordered by sequence before the
        # comparison.
        def check(out):
            in_order = case.per_sequence(out).view(expected.shape) if out.dim() == 2 else out
            return relative_error(in_order, expected)

        comparison.case("attention", dataclasses.asdict(shape), ways, check, limit=1e-2)
        launch.free()
