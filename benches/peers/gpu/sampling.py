"""Compares sampling with the statistics for acceptance: flexdraft, compositions of PyTorch, and FlashInfer.

Implementations draw different tokens, because their random numbers differ. The comparison covers the log-sum-exp, the
token's probability and the largest probability, and checks that truncation keeps the token.
"""

import torch

from common import noise, relative_error
from ours import statistics

VOCAB, RANK, TOP_K, TOP_P = 151_936, 512, 50, 0.9


def cases(small: bool) -> list[dict]:
    if small:
        return [{"rows": 3, "vocab": 1000, "rank": rank, "truncated": truncated}
                for rank, truncated in [(0, False), (0, True), (64, False)]]
    case = lambda rows, rank, truncated: {"rows": rows, "vocab": VOCAB, "rank": rank, "truncated": truncated}
    calibrated = [case(rows, RANK, False) for rows in (15, 240, 60, 960)]
    plain = [case(rows, 0, truncated) for truncated in (False, True) for rows in (1, 16, 80, 256, 1024)]
    return calibrated + plain


def composed(logits, calibrator):
    """Computes calibration, softmax and a Gumbel-max draw, with the same results as flexdraft's kernel."""
    if calibrator is not None:
        u, w2, b2 = calibrator
        logits = logits + (u @ w2.T).float() + b2
    log_sum = torch.logsumexp(logits, -1)
    gumbel = -torch.log(-torch.log(torch.rand_like(logits).clamp_min(1e-20)))
    token = (logits + gumbel).argmax(-1)
    probability = (logits.gather(-1, token[:, None])[:, 0] - log_sum).exp()
    confidence = (logits.amax(-1) - log_sum).exp()
    return token, log_sum, probability, confidence, logits


def truncated(logits):
    """Applies top-k, then top-p to the remaining ids, by sorting the ids that top-k keeps."""
    values, ids = logits.topk(TOP_K, -1)
    p = values.softmax(-1)
    kept = p.cumsum(-1) - p < TOP_P
    values = values.masked_fill(~kept, float("-inf"))
    log_sum = torch.logsumexp(values, -1)
    choice = torch.multinomial((values - log_sum[:, None]).exp(), 1)
    token = ids.gather(-1, choice)[:, 0]
    probability = (values.gather(-1, choice)[:, 0] - log_sum).exp()
    confidence = (logits.amax(-1) - torch.logsumexp(logits, -1)).exp()
    return token, log_sum, probability, confidence, logits


def run(comparison, ours, device: str, small: bool):
    for shape in cases(small):
        rows, vocab, rank = shape["rows"], shape["vocab"], shape["rank"]
        pristine = noise((rows, vocab), 1, device, torch.float32, scale=2.0)
        calibrator = None
        if rank:
            calibrator = (noise((rows, rank), 2, device), noise((vocab, rank), 3, device, scale=rank**-0.5),
                          noise((vocab,), 4, device, torch.float32))
        current = pristine.clone()
        exact = pristine if calibrator is None else pristine + (
            calibrator[0].float() @ calibrator[1].float().T) + calibrator[2]
        whole = exact.softmax(-1)
        warped = whole
        if shape["truncated"]:
            # The expected distribution keeps the k largest logits, up to the mass of top-p; random logits have no ties.
            ordered, ids = exact.topk(TOP_K, -1)
            p = ordered.softmax(-1)
            p = p.masked_fill(p.cumsum(-1) - p >= TOP_P, 0)
            warped = torch.zeros_like(whole).scatter_(-1, ids, p / p.sum(-1, keepdim=True))
        expected_log_sum = torch.logsumexp(exact.masked_fill(warped == 0, float("-inf")), -1)

        def check(found):
            if isinstance(found, torch.Tensor) and found.dtype == torch.uint8:
                stats = statistics(found)
                maximum = exact.amax(-1)
                # flexdraft's log-sum is relative to the largest logit of the row.
                found = (stats["token"].long(), stats["log_sum"] + maximum, stats["probability"], stats["confidence"],
                         current)
            if isinstance(found, torch.Tensor):  # only tokens
                return 0.0 if (warped.gather(-1, found.long()[:, None]) > 0).all() else 1.0
            token, log_sum, probability, confidence, logits = found
            of_token = warped.gather(-1, token[:, None])[:, 0]
            if not (of_token > 0).all():
                return 1.0
            return max(relative_error(log_sum, expected_log_sum), relative_error(probability, of_token),
                       relative_error(confidence, whole.amax(-1)), relative_error(logits, exact))

        truncation = {"top_k": TOP_K, "top_p": TOP_P} if shape["truncated"] else {}
        sampling = ours.row_sampling(rows, **truncation)
        stride = -(-vocab // 8) * 8
        assert stride == vocab, "vocabularies here need no padding"
        launch, _ = ours.sample(current, vocab, sampling, calibrator)
        restore = (lambda: current.copy_(pristine)) if rank else None
        body = truncated if shape["truncated"] else composed
        arguments = (pristine,) if shape["truncated"] else (pristine, calibrator)
        ways = {
            "flexdraft": lambda: (launch, restore),
            "PyTorch eager": lambda: (lambda: body(*arguments), None),
        }
        if device == "cuda":
            compiled = torch.compile(body, dynamic=False)
            ways["PyTorch compiled"] = lambda: (lambda: compiled(*arguments), None)
            if not rank:
                import_flashinfer(ways, pristine, shape["truncated"])
        # The tolerance of probabilities follows from the logits, because the relative error of a probability is the
        # absolute error of its logit. Logits reach 10; bf16 products keep 8 bits.
        comparison.case("sampling", shape, ways, check, limit=2e-2 if rank else 1e-3)


def import_flashinfer(ways: dict, logits, is_truncated: bool):
    def prepare():
        import flashinfer

        if is_truncated:
            return lambda: flashinfer.sampling.top_k_top_p_sampling_from_logits(
                logits, TOP_K, TOP_P, filter_apply_order="top_k_first"), None
        return lambda: flashinfer.sampling.sampling_from_logits(logits), None

    ways["FlashInfer (the token alone)"] = prepare
