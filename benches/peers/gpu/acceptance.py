"""Compares acceptance by rejection for a batch: flexdraft, compositions of PyTorch operations, and FlashInfer.

flexdraft reads logits, and the statistics of rows from its sampling pass. The others read probabilities, which are
computed beforehand and not timed. Draft tokens are certainly accepted in the first half of a draft and certainly
rejected after it, so that all implementations must accept the same number.
"""

import torch

from common import noise

VOCAB = 151_936


def cases(small: bool) -> list[dict]:
    if small:
        return [{"batch": 2, "drafts": 4, "vocab": 1000, "rule": rule} for rule in ("rejection", "block")]
    return [{"batch": batch, "drafts": drafts, "vocab": VOCAB, "rule": rule}
            for rule in ("rejection", "block") for batch in (64, 1, 16) for drafts in (15, 4)]


def composed(p, q, tokens):
    """Applies rejection sampling to whole drafts at once: target distributions p [batch, drafts + 1, vocab], draft
    distributions q [batch, drafts, vocab]."""
    batch, drafts = tokens.shape
    of_token = lambda x: x[:, :drafts].gather(-1, tokens[..., None])[..., 0]
    passed = torch.rand(batch, drafts, device=p.device) * of_token(q) < of_token(p)
    accepted = passed.int().cumprod(-1).sum(-1)
    rows = torch.arange(batch, device=p.device)
    padded = torch.nn.functional.pad(q, (0, 0, 0, 1))
    residual = (p[rows, accepted] - padded[rows, accepted]).clamp_min(0)
    score = residual / -torch.log(torch.rand_like(residual).clamp_min(1e-20))
    return accepted, score.argmax(-1)


def run(comparison, ours, device: str, small: bool):
    for shape in cases(small):
        batch, drafts, vocab = shape["batch"], shape["drafts"], shape["vocab"]
        # Target and draft logits are spread so widely that the token of the largest difference is certainly accepted,
        # and of the smallest certainly rejected.
        target = noise((batch, drafts + 1, vocab), 1, device, torch.float32, scale=3.0)
        draft = noise((batch, drafts, vocab), 2, device, torch.float32, scale=3.0)
        gain = target[:, :drafts] - draft
        surely = torch.arange(drafts, device=device) < drafts // 2
        tokens = torch.where(surely, gain.argmax(-1), gain.argmin(-1))
        del gain
        p, q = target.softmax(-1), draft.softmax(-1)
        kept = p[:, drafts // 2] > q[:, drafts // 2]

        def check(found):
            accepted, bonus = found
            right = (accepted == drafts // 2).all() and kept.gather(-1, bonus.long()[:, None]).all()
            return 0.0 if right else 1.0

        def flexdraft():
            rows = [x.view(-1, vocab) for x in (target, draft)]
            stats = []
            for logits in rows:
                sample, found = ours.sample(logits, vocab, ours.row_sampling(logits.shape[0]))
                sample()
                stats.append(found)
            launch, verdicts, _ = ours.accept(shape["rule"], drafts, vocab, tokens.int(), rows[0], stats[0], rows[1],
                                              stats[1])

            def verdict():
                launch()
                return verdicts[:, 0], verdicts[:, 1]

            return verdict, None

        def flashinfer():
            import flashinfer

            def launch():
                committed, _, emitted = flashinfer.sampling.chain_speculative_sampling(q, tokens.int(), p)
                return emitted, committed.gather(-1, emitted.long()[:, None])[:, 0]

            return launch, None

        ways = {"flexdraft": flexdraft}
        if shape["rule"] == "rejection":
            ways["PyTorch eager"] = lambda: (lambda: composed(p, q, tokens), None)
            if device == "cuda":
                compiled = torch.compile(composed, dynamic=False)
                ways["PyTorch compiled"] = lambda: (lambda: compiled(p, q, tokens), None)
                ways["FlashInfer chain_speculative_sampling"] = flashinfer
        comparison.case("acceptance", shape, ways, check, limit=0.0)
