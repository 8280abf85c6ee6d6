#!/usr/bin/env python3
"""One FlexDraft step in PyTorch: a layer with joint attention, sampling, acceptance, and the next draft.

    python python/examples/step.py [DEVICE]      the default device is cpu, on which an emulator runs the kernels

The weights are random, and the model is one layer without norms and MLP; a real step has the same operations.
"""

import sys

try:
    import torch
except ImportError:
    sys.exit("this example needs PyTorch, which is not installed: pip install torch")
import flexdraft as fd
import flexdraft.torch as ops

VOCAB, HEADS, KV_HEADS, HEAD_DIM, PAGES, PAGE_SIZE, RANK = 64, 4, 2, 64, 4, 16, 16
N, V, S = 37, 3, 4  # cached positions, draft tokens, block size
HIDDEN, C, GROUPS = HEADS * HEAD_DIM, V + 1, range(V + 1)
device = torch.device(sys.argv[1] if len(sys.argv) > 1 else "cpu")
torch.manual_seed(0)


def weight(*shape):
    return (torch.randn(*shape) / shape[-1] ** 0.5).to(device, torch.bfloat16)


def sample(logits, purpose, rows, **calibrator):
    """Draws a token from each row of logits; `rows` has the slots and positions of their random numbers."""
    table = torch.zeros(len(rows), fd.ROW_SAMPLING_BYTES, dtype=torch.uint8)
    for row, (slot, position) in enumerate(rows):
        fd.row_sampling(table, row, temperature=0.8, purpose=purpose, seed=7, slot=slot, position=position)
    stats = torch.zeros(len(rows), fd.ROW_STATS_BYTES, dtype=torch.uint8, device=device)
    length = fd.sample_workspace_len(len(rows), VOCAB, calibrated=bool(calibrator))
    workspace = torch.empty(length, device=device)
    ops.sample(logits, table.to(device), stats, workspace, vocab=VOCAB, update=bool(calibrator), **calibrator)
    return stats


embedding, target_qkv, drafter_qkv = weight(VOCAB, HIDDEN), weight(512, HIDDEN), weight(512, HIDDEN)
w1_bonus, w1_slot, w2, mask = weight(RANK, HIDDEN), weight(RANK, HIDDEN), weight(VOCAB, RANK), weight(1, HIDDEN)
k_cache, v_cache = (weight(PAGES, PAGE_SIZE, KV_HEADS, HEAD_DIM) for _ in "kv")

# 1. The rows: the bonus token and the draft tokens of the step before, then a mask group per accepted length.
draft_logits = torch.randn(V, VOCAB, device=device)
draft_stats = sample(draft_logits, fd.Purpose.DRAFT, [(j + 1, N) for j in range(V)])
tokens = fd.row_stats(draft_stats, "token").contiguous()
tables = ops.PassTables(device, max_batch=1, max_pages=PAGES)
rows = fd.SequenceRows(pages=[2, 0, 3, 1], start=N, candidates=C, groups=GROUPS, slots=S)
tables.upload([rows], pages=PAGES, page_size=PAGE_SIZE)

# 2. The layer: the target's projections for candidates, the drafter's for mask rows, and one attention over both.
x = torch.cat([embedding[5:6], embedding[tokens.long()], mask.expand(len(GROUPS) * S, -1)])
qkv = torch.cat([x[:C] @ target_qkv.T, x[C:] @ drafter_qkv.T])
cos_sin, out = torch.empty(len(x), HEAD_DIM // 2, 2, device=device), torch.empty_like(x)
ops.rope_table(tables, 10000.0 ** -torch.linspace(0, 1, HEAD_DIM // 2, device=device), cos_sin)
for masks in (False, True):
    ops.norm_rope_append(tables, qkv, cos_sin, k_cache, v_cache, q_heads=HEADS, masks=masks)
length = fd.attention_workspace_len(tables, len(x), q_heads=HEADS, kv_heads=KV_HEADS, head_dim=HEAD_DIM)
ops.joint_attention(tables, qkv, k_cache, v_cache, out, torch.empty(length, device=device), q_heads=HEADS)
hidden = x + out

# 3. Verification: the target's token after every candidate, and how many draft tokens stand.
target = (hidden[:C] @ embedding.T).float()
target_stats = sample(target, fd.Purpose.TARGET, [(0, N + i + 1) for i in range(C)])
verify = torch.zeros(1, fd.VERIFY_BYTES, dtype=torch.uint8)
fd.verify(verify, 0, rule=fd.Rule.REJECTION, draft=fd.DraftKind.LOGITS, position=N, drafts=V, first_target=0,
          first_token=0, seed=7, groups=GROUPS)
verdicts = torch.zeros(1, fd.VERDICT_BYTES, dtype=torch.uint8, device=device)
committed, arrived, bonus, start = (torch.zeros(1, n, dtype=torch.int32, device=device) for n in (64, 1, 1, 1))
workspace = torch.empty(fd.accept_workspace_len(1, VOCAB), device=device)
ops.accept(verify.to(device), tokens, target, target_stats, verdicts, committed, arrived[0], workspace, vocab=VOCAB,
           draft=draft_logits, draft_stats=draft_stats)

# 4. The next draft: the mask group of the accepted length, calibrated by the bonus token.
draft = torch.zeros(1, fd.DRAFT_BYTES, dtype=torch.uint8)
fd.draft(draft, 0, sequence=0, groups=GROUPS, first_slot=C, slots=S, first_draft=0)
sources, draft_rows = (torch.zeros(S - 1, dtype=torch.int32, device=device) for _ in "sr")
ops.select_drafts(draft.to(device), verdicts, bonus[0], start[0], sources, draft_rows)
slots = hidden[sources.long()]
calibrated = slots @ w1_slot.T
ops.silu_add(calibrated, embedding[bonus[0].long()] @ w1_bonus.T, torch.zeros_like(sources))
next_logits = (slots @ embedding.T).float()
keys = [(j + 1, int(start)) for j in range(S - 1)]
next_stats = sample(next_logits, fd.Purpose.DRAFT, keys, hidden=calibrated, weight=w2)

accepted = int(fd.verdict(verdicts, "accepted"))
print(f"draft {tokens.tolist()}, accepted {accepted}, committed {committed[0, :accepted + 1].tolist()}")
print(f"next draft {fd.row_stats(next_stats, 'token').tolist()} from position {int(start)}")
