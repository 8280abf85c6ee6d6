#!/usr/bin/env python3
"""Compares the package with PyTorch, and writes what was seen.

    pip install torch ./python
    python python/tests/torch_check.py --commit COMMIT --output benches/results/python_torch.md

Joint attention beside scaled_dot_product_attention with the dense mask; the law of sampling, of edited logits and of the
rejection rule beside softmax, with logits of f32, bf16 and f16; a calibrator beside a matrix product in f64;
torch.library.opcheck of every operator; torch.compile of a layer; wrong arguments of operators, with and without a compiler.
Exits with 1 if a check fails.
"""

import argparse
import datetime
import pathlib
import platform
import runpy
import sys

import flexdraft as fd
import flexdraft.torch as ops
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

HERE = pathlib.Path(__file__).resolve().parent
BF16, F16 = torch.bfloat16, torch.float16
NAMES = {torch.float32: "f32", BF16: "bf16", F16: "f16"}


def sampling_table(rows, **options):
    """Returns the sampling of rows whose random numbers differ by position."""
    table = torch.zeros(rows, fd.ROW_SAMPLING_BYTES, dtype=torch.uint8)
    for row in range(rows):
        fd.row_sampling(table, row, position=row, **options)
    return table


def sample(logits, table, vocab, op=ops.sample, **options):
    stats = torch.zeros(len(table), fd.ROW_STATS_BYTES, dtype=torch.uint8)
    workspace = torch.empty(fd.sample_workspace_len(len(table), vocab))
    op(logits, table, stats, workspace, vocab=vocab, **options)
    return stats, workspace


def p_value(tokens, probabilities):
    """Returns the p-value of Pearson's chi-square test of tokens against a distribution, and its number of cells. Ids
    with fewer than 5 expected tokens share one cell."""
    expected = probabilities.double() * len(tokens)
    counts = torch.bincount(tokens.long(), minlength=len(probabilities)).double()
    if counts[expected == 0].any():
        return 0.0, 0
    large = expected >= 5
    expected = torch.cat([expected[large], expected[~large].sum()[None]])
    counts = torch.cat([counts[large], counts[~large].sum()[None]])
    expected, counts = expected[expected > 0], counts[expected > 0]
    statistic = ((counts - expected) ** 2 / expected).sum()
    degrees = torch.tensor((len(expected) - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(degrees, statistic / 2)), len(expected)


def attention(report):
    """Random passes: the kernel in bf16 beside PyTorch's attention in f64 over the same bf16 numbers, with a mask."""
    worst, rows_seen = 0.0, 0
    for seed, (q_heads, kv_heads, head_dim, page_size) in enumerate([(4, 4, 64, 16), (8, 2, 128, 32), (6, 1, 64, 64)]):
        random = torch.Generator().manual_seed(seed)
        number = lambda low, high: int(torch.randint(low, high, (1,), generator=random))  # noqa: E731
        pages, ids, sequences = 24, list(range(24)), []
        for _ in range(3):
            start, v, slots = number(0, 90), number(0, 5), number(1, 6)
            groups = [k for k in range(v + 1) if number(0, 2)]
            count = (start + v) // page_size + 1
            sequences.append(fd.SequenceRows([ids.pop(number(0, len(ids))) for _ in range(count)], start, v + 1, groups, slots))
        tables = ops.PassTables(max_batch=3, max_pages=8)
        tables.upload(sequences, pages=pages, page_size=page_size)
        rows = [(s, n + q.start + 1, None) for s, q in enumerate(sequences) for n in range(q.candidates)]
        for s, sequence in enumerate(sequences):
            for group in sequence.groups:
                own = range(len(rows), len(rows) + sequence.slots)
                rows += [(s, sequence.start + group + 1, own)] * sequence.slots
        qkv = torch.randn(len(rows), (q_heads + 2 * kv_heads) * head_dim, generator=random).to(BF16)
        k_cache, v_cache = (torch.randn(pages, page_size, kv_heads, head_dim, generator=random).to(BF16) for _ in "kv")
        out = torch.empty(len(rows), q_heads * head_dim, dtype=BF16)
        length = fd.attention_workspace_len(tables, len(rows), q_heads=q_heads, kv_heads=kv_heads, head_dim=head_dim)
        ops.joint_attention(tables, qkv, k_cache, v_cache, out, torch.empty(length), q_heads=q_heads)

        # All keys: the cache's tokens by page, then the rows' own. The mask says what a row sees.
        cached = pages * page_size
        heads = qkv.view(len(rows), -1, head_dim)
        keys = torch.cat([k_cache.flatten(0, 1), heads[:, q_heads:q_heads + kv_heads]])
        values = torch.cat([v_cache.flatten(0, 1), heads[:, q_heads + kv_heads:]])
        mask = torch.zeros(len(rows), cached + len(rows), dtype=torch.bool)
        for row, (s, seen, own) in enumerate(rows):
            for position in range(seen):
                mask[row, sequences[s].pages[position // page_size] * page_size + position % page_size] = True
            for slot in own or ():
                mask[row, cached + slot] = True
        heads_first = lambda x: x.transpose(0, 1)[None].double()  # noqa: E731
        expected = F.scaled_dot_product_attention(heads_first(heads[:, :q_heads]), heads_first(keys), heads_first(values),
                                                  attn_mask=mask, enable_gqa=True)
        difference = (out.double() - expected[0].transpose(0, 1).reshape(len(rows), -1)).abs().max()
        worst, rows_seen = max(worst, float(difference)), rows_seen + len(rows)
    report(f"Joint attention, {rows_seen} rows of 3 random passes, beside `scaled_dot_product_attention` in f64 with the "
           f"dense mask: the largest difference is {worst:.4f}", worst < 2**-6)


def law_of_sampling(report):
    """Draws of the kernel against softmax, and draws of torch.multinomial as a control of the test."""
    draws, vocab, stride = 20_000, 40, 40
    cases = (("temperature 0.8", torch.float32, dict(temperature=0.8)), ("top-k 10", torch.float32, dict(top_k=10)),
             ("top-p 0.8", torch.float32, dict(top_p=0.8)), ("min-p 0.1", torch.float32, dict(min_p=0.1)),
             ("temperature 0.8", F16, dict(temperature=0.8)), ("top-p 0.8", F16, dict(top_p=0.8)))
    for name, dtype, options in cases:
        row = (1.5 * torch.randn(vocab, generator=torch.Generator().manual_seed(1))).to(dtype)
        logits = row.repeat(draws, 1)
        probabilities = torch.softmax(row.double() / options.get("temperature", 1.0), 0)
        order = probabilities.argsort(descending=True)
        if "top_k" in options:
            probabilities[order[10:]] = 0
        if "top_p" in options:
            before = probabilities[order].cumsum(0) - probabilities[order]
            probabilities[order[before >= 0.8]] = 0
        if "min_p" in options:
            probabilities[probabilities < 0.1 * probabilities.max()] = 0
        probabilities /= probabilities.sum()
        table = sampling_table(draws, purpose=fd.Purpose.TARGET, seed=3, **options)
        stats, _ = sample(logits, table, stride)
        found, cells = p_value(fd.row_stats(stats, "token"), probabilities)
        generator = torch.Generator().manual_seed(2)
        control, _ = p_value(torch.multinomial(probabilities, draws, replacement=True, generator=generator), probabilities)
        error = (fd.row_stats(stats, "probability").double() - probabilities[fd.row_stats(stats, "token").long()]).abs().max()
        report(f"Sampling of {NAMES[dtype]} logits with {name}, {draws} draws against softmax: chi-square over {cells} cells has "
               f"p = {found:.3f} (`torch.multinomial`: {control:.3f}); reported probabilities differ by at most {error:.1e}",
               found > 1e-3 and error < 1e-5)
    uniform, _ = p_value(fd.row_stats(stats, "token"), torch.full((vocab,), 1 / vocab))
    report(f"The same draws against another distribution are refused: p = {uniform:.1e}", uniform < 1e-6)


def edit_tables(rows, vocab, **options):
    """Returns the tables of edits of rows that are a sequence each, as operands of `sample`."""
    tables = dict(row_edits=torch.zeros(rows, fd.ROW_EDITS_BYTES, dtype=torch.uint8),
                  edit_offsets=torch.zeros(2 * rows, dtype=torch.int32),
                  edits=torch.zeros(9 * rows, fd.LOGIT_EDIT_BYTES, dtype=torch.uint8),
                  masks=torch.zeros(2 * rows, dtype=torch.int32))
    used = torch.zeros(3, dtype=torch.int64)
    for row in range(rows):
        fd.edit_rows(**tables, used=used, vocab=vocab, first_row=row, **options)
    return tables


def law_of_edited_logits(report):
    """Penalties, bias, a forbidden id and a mask: the logits afterwards, and the law of draws from them."""
    draws, vocab = 20_000, 40
    allowed = [id for id in range(vocab) if id % 7 != 3]
    words = [sum(1 << id % 32 for id in allowed if id // 32 == word) for word in range(2)]
    tokens, prompt_len, bias = [4, 9, 9, 30, 4, 12], 2, {1: 1.5, 30: -0.75}
    options = dict(tokens=tokens, prompt_len=prompt_len, repetition_penalty=1.25, frequency_penalty=0.25,
                   presence_penalty=0.5, logit_bias=bias, bad_words=[[20], [12, 21], [30, 22]],
                   allowed=torch.tensor(words, dtype=torch.uint32).view(torch.int32))
    for dtype in (torch.float32, BF16, F16):
        row = (1.5 * torch.randn(vocab, generator=torch.Generator().manual_seed(8))).to(dtype)
        expected = row.double()
        for id in set(tokens):
            expected[id] = expected[id] / 1.25 if expected[id] > 0 else expected[id] * 1.25
            count = tokens[prompt_len:].count(id)
            expected[id] -= 0.25 * count + 0.5 * (count > 0)
        for id, added in bias.items():
            expected[id] += added
        # The bad word of one id, and the bad word whose first id is the newest token.
        expected[[20, 21] + [id for id in range(vocab) if id not in allowed]] = -torch.inf
        logits = row.repeat(draws, 1)
        table = sampling_table(draws, purpose=fd.Purpose.TARGET, seed=9, temperature=0.8)
        stats, _ = sample(logits, table, vocab, **edit_tables(draws, vocab, **options))
        forbidden = expected == -torch.inf
        same = torch.equal(logits, logits[:1].expand(draws, vocab)) and torch.equal(logits[0] == -torch.inf, forbidden)
        error = (logits[0].double() - expected)[~forbidden].abs().max()
        found, cells = p_value(fd.row_stats(stats, "token"), torch.softmax(logits[0].double() / 0.8, 0))
        unedited, _ = p_value(fd.row_stats(stats, "token"), torch.softmax(row.double() / 0.8, 0))
        bound = 2 * torch.finfo(dtype).eps
        report(f"Edited {NAMES[dtype]} logits (penalties, bias, bad words, mask) differ by at most {error:.1e} from the edits in "
               f"f64; {draws} draws against their softmax: chi-square over {cells} cells has p = {found:.3f}, and against the "
               f"softmax without edits p = {unedited:.1e}", same and error < bound and found > 1e-3 and unedited < 1e-6)


def calibrators(report):
    """Logits plus the product of a calibrator's weight and hidden layer, of the types that go together."""
    rows, vocab, rank = 70, 45, 24
    for dtype, of_calibrator in ((torch.float32, BF16), (torch.float32, F16), (BF16, BF16), (F16, F16)):
        random = torch.Generator().manual_seed(10)
        logits = torch.randn(rows, 48, generator=random).to(dtype)
        hidden, weight = (torch.randn(n, rank, generator=random).to(of_calibrator) for n in (rows, vocab))
        bias = torch.randn(vocab, generator=random)
        expected = logits[:, :vocab].double() + hidden.double() @ weight.double().T + bias.double()
        stats = torch.zeros(rows, fd.ROW_STATS_BYTES, dtype=torch.uint8)
        workspace = torch.empty(fd.sample_workspace_len(rows, vocab, calibrated=True))
        ops.sample(logits, sampling_table(rows, temperature=0.0), stats, workspace, vocab=vocab, hidden=hidden, weight=weight,
                   bias=bias, update=True)
        found = logits[:, :vocab].double()
        bound = torch.finfo(dtype).eps / 2 * 1.02 * expected.abs() + 2e-5
        greedy = torch.equal(fd.row_stats(stats, "token").long(), found.argmax(1))
        error = (found - expected).abs()
        report(f"Logits of {NAMES[dtype]} with a calibrator of {NAMES[of_calibrator]} beside the sum in f64, {rows} rows: the "
               f"largest difference is {error.max():.1e}", bool((error <= bound).all()) and greedy)


def rejection_rule(report):
    """One draft token per sequence, drawn from q and verified against p."""
    for dtype in (torch.float32, F16):
        rejection_rule_of(report, dtype)


def rejection_rule_of(report, dtype):
    batch, vocab = 10_000, 16
    generator = torch.Generator().manual_seed(4)
    p_row, q_row = (torch.randn(vocab, generator=generator).to(dtype) for _ in range(2))
    p, q = torch.softmax(p_row.double(), 0), torch.softmax(q_row.double(), 0)
    draft, target = q_row.repeat(batch, 1), p_row.repeat(2 * batch, 1)
    draft_table = sampling_table(batch, purpose=fd.Purpose.DRAFT, seed=5, slot=1)
    target_table = torch.zeros(2 * batch, fd.ROW_SAMPLING_BYTES, dtype=torch.uint8)
    sequences = torch.zeros(batch, fd.VERIFY_BYTES, dtype=torch.uint8)
    for b in range(batch):
        for i in range(2):
            fd.row_sampling(target_table, 2 * b + i, purpose=fd.Purpose.TARGET, seed=5, position=b + i + 1)
        fd.verify(sequences, b, rule=fd.Rule.REJECTION, draft=fd.DraftKind.LOGITS, position=b, drafts=1, seed=5,
                  first_target=2 * b, first_draft=b, first_draft_stats=b, first_token=b)
    draft_stats, _ = sample(draft, draft_table, vocab)
    target_stats, _ = sample(target, target_table, vocab)
    verdicts = torch.zeros(batch, fd.VERDICT_BYTES, dtype=torch.uint8)
    committed, arrived = torch.zeros(batch, 64, dtype=torch.int32), torch.zeros(batch, dtype=torch.int32)
    tokens = fd.row_stats(draft_stats, "token").contiguous()
    ops.accept(sequences, tokens, target, target_stats, verdicts, committed, arrived,
               torch.empty(fd.accept_workspace_len(batch, vocab)), vocab=vocab, draft=draft, draft_stats=draft_stats)
    accepted = fd.verdict(verdicts, "accepted")
    rate, expected = float(accepted.double().mean()), float(torch.minimum(p, q).sum())
    deviation = (rate - expected) / (expected * (1 - expected) / batch) ** 0.5
    first, cells = p_value(committed[:, 0], p)
    second, _ = p_value(committed[accepted == 1, 1], p)
    drafted, _ = p_value(tokens, p)
    report(f"Rejection rule, {NAMES[dtype]} logits, {batch} sequences with one draft token: {rate:.4f} are accepted, and "
           f"sum(min(p, q)) is {expected:.4f} ({deviation:+.2f} standard deviations)", abs(deviation) < 3.5)
    report(f"The first committed token has the target's law: p = {first:.3f} over {cells} cells; so has the token after an "
           f"accepted one: p = {second:.3f}. The draft tokens have not: p = {drafted:.1e}",
           first > 1e-3 and second > 1e-3 and drafted < 1e-6)


class Recorder(TorchDispatchMode):
    """Keeps copies of the arguments of the first call of each operator of this package."""

    def __init__(self):
        super().__init__()
        self.calls = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function.namespace == "flexdraft" and function not in self.calls:
            copy = lambda x: x.clone() if isinstance(x, torch.Tensor) else x  # noqa: E731
            self.calls[function] = [copy(x) for x in args], {name: copy(x) for name, x in kwargs.items()}
        return function(*args, **kwargs)


def every_operator():
    """Calls the operators that the example does not call."""
    i32 = dict(dtype=torch.int32)
    x, out = torch.randn(3, 16).to(BF16), torch.empty(3, 16, dtype=BF16)
    ids = torch.tensor([2, 0, 1], **i32)
    ops.embed(ids, x, out)
    ops.gather(ids, x, out)
    ops.rms_norm(x, torch.ones(16), out, 1e-5, delta=out.clone())
    ops.add(x, out)
    ops.silu_mul(torch.randn(3, 32).to(BF16), out)
    logits = torch.randn(3, 24)
    _, partials = sample(logits, sampling_table(3), 20, op=ops.sample_partials)
    chosen_ids, chosen = torch.zeros(3, 4, **i32), torch.zeros(3, 4)
    ops.chain_choose(logits, partials, chosen_ids, chosen, vocab=20, calibrated=False)
    scores = torch.zeros(3, 4, 4)
    ops.chain_score(torch.randn(13, 8), torch.randn(12, 8), torch.zeros(3, **i32), scores, rank=8, drafts=1)
    draft = torch.zeros(1, fd.DRAFT_BYTES, dtype=torch.uint8)
    fd.draft(draft, 0, sequence=0, groups=[0], first_slot=0, slots=4, first_draft=0)
    stats = torch.zeros(3, fd.ROW_STATS_BYTES, dtype=torch.uint8)
    ops.chain_walk(draft, sampling_table(3), chosen_ids, scores, chosen, stats)
    tables = ops.PassTables(max_batch=1, max_pages=1)
    tables.upload([fd.SequenceRows([0], start=2, candidates=0, groups=[1], slots=2)], pages=1, page_size=16)
    verdicts = torch.zeros(1, fd.VERDICT_BYTES, dtype=torch.uint8)
    ops.follow_verdicts(tables, torch.zeros(1, **i32), verdicts)
    return tables


def operators(report):
    """torch.library.opcheck: schemas, fake implementations and dispatch of every operator, on recorded arguments."""
    with Recorder() as recorder:
        kept = every_operator()
        given, sys.argv = sys.argv, ["step.py"]
        example = runpy.run_path(str(HERE.parent / "examples" / "step.py"))
        sys.argv = given
    for operator, (args, kwargs) in recorder.calls.items():
        torch.library.opcheck(operator, tuple(args), kwargs)
    # Edited logits of f16, which are arguments that the recorded calls do not have.
    for operator in (torch.ops.flexdraft.sample.default, torch.ops.flexdraft.sample_partials.default):
        stats, workspace = torch.zeros(3, fd.ROW_STATS_BYTES, dtype=torch.uint8), torch.zeros(fd.sample_workspace_len(3, 20))
        tables = edit_tables(3, 20, tokens=[1, 2], repetition_penalty=1.5)
        torch.library.opcheck(operator, (torch.randn(3, 24).to(F16), sampling_table(3), stats, workspace, 20), tables)
    del kept, example
    names = {name for name in ops.__all__ if name not in ("PassTables", "SequenceRows")}
    checked = {operator._schema.name.removeprefix("flexdraft::") for operator in recorder.calls}
    report(f"`torch.library.opcheck` (schema, fake tensors, autograd registration, dispatch) of {len(checked)} of "
           f"{len(names)} operators, on the arguments of the example and others", checked == names)


def compiled(report):
    """A layer around joint attention, compiled as one graph."""
    q_heads, kv_heads, head_dim, hidden = 4, 2, 64, 256
    generator = torch.Generator().manual_seed(6)
    weight = lambda *shape: (torch.randn(*shape, generator=generator) / shape[-1] ** 0.5).to(BF16)  # noqa: E731
    qkv_weight, o_weight, up, down = weight(512, hidden), weight(hidden, hidden), weight(512, hidden), weight(hidden, 256)
    norm, inv_freq = torch.rand(hidden, generator=generator) + 0.5, 10000.0 ** -torch.linspace(0, 1, head_dim // 2)
    tables = ops.PassTables(max_batch=1, max_pages=4)
    tables.upload([fd.SequenceRows([1, 0], start=9, candidates=3, groups=[0, 2], slots=4)], pages=2, page_size=16)
    rows = 3 + 2 * 4
    length = fd.attention_workspace_len(tables, rows, q_heads=q_heads, kv_heads=kv_heads, head_dim=head_dim)

    def layer(x, k_cache, v_cache):
        normed = torch.empty_like(x)
        ops.rms_norm(x, norm, normed, 1e-6)
        qkv = normed @ qkv_weight.T
        cos_sin = torch.empty(x.shape[0], head_dim // 2, 2)
        ops.rope_table(tables, inv_freq, cos_sin)
        ops.norm_rope_append(tables, qkv, cos_sin, k_cache, v_cache, q_heads=q_heads, masks=False)
        ops.norm_rope_append(tables, qkv, cos_sin, k_cache, v_cache, q_heads=q_heads, masks=True)
        attended = torch.empty_like(x)
        ops.joint_attention(tables, qkv, k_cache, v_cache, attended, torch.empty(length), q_heads=q_heads)
        delta = attended @ o_weight.T
        ops.rms_norm(x, norm, normed, 1e-6, delta=delta)
        activation = torch.empty(x.shape[0], 256, dtype=BF16)
        ops.silu_mul(normed @ up.T, activation)
        return x + activation @ down.T

    def run(function):
        x, k_cache, v_cache = (torch.randn(*shape, generator=torch.Generator().manual_seed(7)).to(BF16)
                               for shape in ((rows, hidden), (2, 16, kv_heads, head_dim), (2, 16, kv_heads, head_dim)))
        return function(x, k_cache, v_cache), x, k_cache, v_cache

    with torch.no_grad():
        eager = run(layer)
        for backend in ("aot_eager", "inductor"):
            torch.compiler.reset()
            results = run(torch.compile(layer, fullgraph=True, backend=backend))
            same = all(torch.equal(a, b) for a, b in zip(eager, results))
            largest = max(float((a.float() - b.float()).abs().max()) for a, b in zip(eager, results))
            words = "the same bits as without a compiler" if same else f"differences of at most {largest:.4f}"
            report(f"`torch.compile(fullgraph=True, backend=\"{backend}\")` of a layer with seven launches: output, "
                   f"residual stream and cache have {words}", same if backend == "aot_eager" else largest < 2**-4)


def order(report):
    """Tables that change within one compiled graph: the operators before and after see their own contents."""
    verdicts = torch.zeros(1, fd.VERDICT_BYTES, dtype=torch.uint8)
    verdicts.view(torch.int32)[0, 0], verdicts.view(torch.int64)[0, 2] = 1, 7
    operands = torch.ones(1), torch.zeros(1, dtype=torch.int32), verdicts

    def angles(tables, inv_freq, sequences, verdicts):
        before, after = torch.empty(4, 1, 2), torch.empty(4, 1, 2)
        ops.rope_table(tables, inv_freq, before)
        ops.follow_verdicts(tables, sequences, verdicts)
        ops.rope_table(tables, inv_freq, after)
        return before, after

    def run(function):
        tables = ops.PassTables(max_batch=1, max_pages=1)
        tables.upload([fd.SequenceRows([0], start=5, candidates=0, groups=[3], slots=4)], pages=1, page_size=16)
        return function(tables, *operands)

    eager, same = run(angles), True
    for backend in ("aot_eager", "inductor"):
        torch.compiler.reset()
        compiled_angles = torch.compile(angles, fullgraph=True, backend=backend)
        for _ in range(2):
            same &= all(torch.equal(a, b) for a, b in zip(eager, run(compiled_angles)))
    report("`follow_verdicts` between two `rope_table` in one compiled graph, with the tables of two passes: the angles before "
           "and after are those without a compiler", same and not torch.equal(*eager))


def raised(function, *arguments):
    """Returns the error that a call raises, or None."""
    try:
        function(*arguments)
    except Exception as error:  # noqa: BLE001
        return error
    return None


def misuse(report):
    """Wrong arguments: the kind of the error, and that no operand changes, with and without a compiler."""
    x, ones = torch.zeros(2, 16, dtype=BF16), torch.ones(2, 16, dtype=BF16)
    rows, stats, short = torch.zeros(2, 24), torch.zeros(2, fd.ROW_STATS_BYTES, dtype=torch.uint8), torch.zeros(1)
    # A compiler drops an operator whose outputs nothing uses, so the outputs are tensors of this function.
    table, wide, cos_sin = sampling_table(2), torch.zeros(2, 16), torch.zeros(1, 1, 2)
    cases = {
        "a wrong element type": (TypeError, "`x`", lambda: ops.add(wide, ones)),
        "two element types in one call": (TypeError, "`delta`", lambda: ops.add(x, ones.to(F16))),
        "a wrong shape": (ValueError, "`delta`", lambda: ops.add(x, ones[:, :8].contiguous())),
        "a tensor that is not contiguous": (ValueError, "contiguous", lambda: ops.add(x.view(16, 2).T, ones)),
        "an unaligned tensor": (ValueError, "16 bytes", lambda: ops.add(x, torch.ones(40, dtype=BF16)[1:33].view(2, 16))),
        "a workspace that is too small": (
            ValueError, "workspace", lambda: ops.sample(rows, table, stats, short[:0], vocab=20)),
        "tables that no longer exist": (
            ValueError, "pass tables", lambda: torch.ops.flexdraft.rope_table(10**6, short, short, cos_sin)),
    }
    for backend in (None, "aot_eager"):
        failed = []
        for name, (kind, words, call) in cases.items():
            torch.compiler.reset()
            found = raised(torch.compile(call, fullgraph=True, backend=backend) if backend else call)
            changed = any(operand.any() for operand in (x, rows, stats, wide, cos_sin))
            if changed or type(found) is not kind or words not in str(found):
                failed.append(f"{name}: {found!r}")
        where = f"under `torch.compile(fullgraph=True, backend=\"{backend}\")`" if backend else "without a compiler"
        report(f"Wrong arguments raise `TypeError` or `ValueError` {where}, and no operand changes: {', '.join(cases)}"
               f"{''.join('; ' + text for text in failed)}", not failed)

    missing = {
        "a number in place of a tensor": lambda: torch.ops.flexdraft.add(1, ones),
        "a missing argument": lambda: torch.ops.flexdraft.add(x),
    }
    found = {name: raised(call) for name, call in missing.items()}
    report(f"Arguments that do not fit an operator's schema raise PyTorch's `RuntimeError`: {', '.join(missing)}",
           all(type(error) is RuntimeError for error in found.values()))

    with FakeTensorMode():
        host, device = torch.zeros(2, 16, dtype=BF16), torch.zeros(2, 16, dtype=BF16, device="cuda")
        mixed, alike = raised(ops.add, host, device), raised(ops.add, device, device)
    report("Fake tensors of two devices in one call raise `ValueError`, and fake CUDA tensors alone are accepted",
           type(mixed) is ValueError and "cuda" in str(mixed) and alike is None)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--commit", default="unknown", help="the commit of the package, for the page")
    parser.add_argument("--output", type=pathlib.Path, help="the page to write")
    options = parser.parse_args()
    lines, failed = [], []

    def report(text, holds):
        print(("ok      " if holds else "FAILED  ") + text, flush=True)
        lines.append(f"- {text}.{'' if holds else ' **This is beyond its bound.**'}")
        failed.extend([] if holds else [text])

    for check in (attention, law_of_sampling, law_of_edited_logits, calibrators, rejection_rule, operators, compiled, order, misuse):
        check(report)
    if options.output:
        options.output.write_text(
            f"# The Python package with PyTorch\n\nRun on {datetime.date.today()} at commit {options.commit} by "
            f"`python/tests/torch_check.py`: PyTorch {torch.__version__}, Python {platform.python_version()},\n"
            f"{platform.machine()} {platform.system()}, on the SIMT emulator. No GPU took part.\n\n" + "\n".join(lines) + "\n")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
