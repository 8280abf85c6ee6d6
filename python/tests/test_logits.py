"""Sampling, acceptance, chains and the selection of drafts against NumPy."""

import unittest

import flexdraft
import numpy as np
from flexdraft import DraftKind, DraftRows, Purpose, Rule
from oracles import DRAFT, VERDICT, bf16s, floats, halves, rounded, to_float

VOCAB, STRIDE = 45, 48
# The types of logits: f32, bf16 and f16.
KINDS = np.float32, np.uint16, np.float16


def samplings(rows, **options):
    """Returns the sampling of rows: slot r + 1 and position 9 for row r."""
    table = np.zeros((rows, flexdraft.ROW_SAMPLING_BYTES), np.uint8)
    for row in range(rows):
        flexdraft.row_sampling(table, row, slot=row + 1, position=9, **options)
    return table


def sampled(logits, sampling, sample=flexdraft.sample, **options):
    """Returns the statistics of rows of logits, and the workspace."""
    length = flexdraft.sample_workspace_len(len(sampling), VOCAB, calibrated="hidden" in options)
    stats, workspace = np.zeros((len(sampling), flexdraft.ROW_STATS_BYTES), np.uint8), np.zeros(length, np.float32)
    sample(logits, sampling, stats, workspace, vocab=VOCAB, **options)
    return stats, workspace


def softmax(scores):
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


class Sampling(unittest.TestCase):
    def setUp(self):
        self.random = np.random.default_rng(3)
        self.logits = 2 * floats(self.random, 3, STRIDE)

    def test_greedy_rows(self):
        stats, _ = sampled(self.logits, samplings(3, temperature=0.0))
        tokens = self.logits[:, :VOCAB].argmax(axis=1)
        np.testing.assert_array_equal(flexdraft.row_stats(stats, "token"), tokens)
        np.testing.assert_array_equal(flexdraft.row_stats(stats, "token_logit"), self.logits[range(3), tokens])
        np.testing.assert_array_equal(flexdraft.row_stats(stats, "fault"), 0)
        with self.assertRaisesRegex(ValueError, "no field 'tokens'"):
            flexdraft.row_stats(stats, "tokens")

    def test_statistics(self):
        asked = np.array([3, -1, 44], np.int32)
        stats, _ = sampled(self.logits, samplings(3, temperature=0.7, purpose=Purpose.DRAFT, seed=5), draft=asked)
        probabilities = softmax(self.logits[:, :VOCAB] / 0.7)
        tokens = flexdraft.row_stats(stats, "token")
        close = dict(rtol=1e-4)
        np.testing.assert_allclose(flexdraft.row_stats(stats, "probability"), probabilities[range(3), tokens], **close)
        wanted = np.where(asked < 0, 0, probabilities[range(3), asked])
        np.testing.assert_allclose(flexdraft.row_stats(stats, "draft_probability"), wanted, **close)
        np.testing.assert_allclose(flexdraft.row_stats(stats, "confidence"), softmax(self.logits[:, :VOCAB]).max(axis=1),
                                   **close)
        np.testing.assert_array_equal(flexdraft.row_stats(stats, "kept"), VOCAB)
        # Slots key the random numbers: many rows of one distribution get many tokens.
        many, _ = sampled(np.zeros((20, STRIDE), np.float32), samplings(20, purpose=Purpose.DRAFT, seed=5))
        self.assertGreater(len(set(flexdraft.row_stats(many, "token"))), 10)

    def test_top_k_and_an_index(self):
        index = np.array([2, -1, 0], np.int32)
        stats, _ = sampled(self.logits, samplings(3, top_k=1, purpose=Purpose.TARGET), logit_index=index)
        tokens, kept = flexdraft.row_stats(stats, "token"), flexdraft.row_stats(stats, "kept")
        self.assertEqual(list(tokens[[0, 2]]), list(self.logits[[2, 0], :VOCAB].argmax(axis=1)))
        self.assertEqual(list(kept), [1, 0, 1])

    def test_a_calibrator(self):
        for kind in (np.uint16, np.float16):
            self.calibrated(kind)
        half = self.logits.astype(np.float16)
        hidden, weight = halves(self.random, np.float16, 3, 16), halves(self.random, np.float16, VOCAB, 16)
        expected = half[:, :VOCAB] + (to_float(hidden) @ to_float(weight).T)
        sampled(half, samplings(3, temperature=0.0), hidden=hidden, weight=weight, update=True)
        np.testing.assert_allclose(half[:, :VOCAB], expected, atol=2e-2)
        with self.assertRaisesRegex(TypeError, "`weight` has elements of type f16, expected bf16"):
            sampled(self.logits, samplings(3), hidden=bf16s(self.random, 3, 16), weight=weight)

    def calibrated(self, kind):
        hidden, weight = halves(self.random, kind, 3, 16), halves(self.random, kind, VOCAB, 16)
        bias = floats(self.random, VOCAB)
        before = self.logits.copy()
        sampled(self.logits, samplings(3, temperature=0.0), hidden=hidden, weight=weight, bias=bias)
        np.testing.assert_array_equal(self.logits, before)
        stats, _ = sampled(self.logits, samplings(3, temperature=0.0), hidden=hidden, weight=weight, bias=bias, update=True)
        expected = before[:, :VOCAB] + to_float(hidden) @ to_float(weight).T + bias
        np.testing.assert_allclose(self.logits[:, :VOCAB], expected, atol=1e-4)
        np.testing.assert_array_equal(flexdraft.row_stats(stats, "token"), self.logits[:, :VOCAB].argmax(axis=1))

    def test_relative_positions(self):
        logits = np.zeros((1, STRIDE), np.float32)
        tables = np.zeros((2, flexdraft.ROW_SAMPLING_BYTES), np.uint8)
        flexdraft.row_sampling(tables, 0, purpose=Purpose.TARGET, position=107)
        flexdraft.row_sampling(tables, 1, purpose=Purpose.TARGET, position=7, sequence=1)
        starts = np.array([50, 100], np.int32)
        tokens = [int(flexdraft.row_stats(sampled(logits, row, starts=starts)[0], "token")[0])
                  for row in (tables[:1], tables[1:])]
        self.assertEqual(tokens[0], tokens[1])

    def test_bf16_logits(self):
        logits = bf16s(self.random, 2, STRIDE)
        stats, _ = sampled(logits, samplings(2, temperature=0.0))
        np.testing.assert_array_equal(flexdraft.row_stats(stats, "token"), to_float(logits)[:, :VOCAB].argmax(axis=1))


class Edits(unittest.TestCase):
    """Rows 0 and 1 are the target's after the output 3, 3 and with the draft token 5; row 2 is a row of a draft."""

    def setUp(self):
        self.tables = dict(row_edits=np.zeros((3, flexdraft.ROW_EDITS_BYTES), np.uint8),
                           edit_offsets=np.zeros(4, np.int32),
                           edits=np.zeros((20, flexdraft.LOGIT_EDIT_BYTES), np.uint8), masks=np.zeros(4, np.uint32))
        self.used = np.zeros(3, np.int64)
        self.allowed = np.array([0xFFFFFFFF, ~(1 << 8) & 0xFFFFFFFF], np.uint32)

    def push(self, **options):
        options = dict(tokens=[1, 2, 3, 3], prompt_len=2, draft=[5], stop_ids=[8], min_tokens=3, repetition_penalty=1.5,
                       frequency_penalty=0.25, presence_penalty=0.5, logit_bias={7: 2.0, 9: -1.0},
                       bad_words=[[11], [3, 4]], allowed=self.allowed, vocab=VOCAB) | options
        flexdraft.edit_rows(**self.tables, used=self.used, **options)

    def edited(self, row, before, output, forbidden):
        """Returns a row of logits after all edits."""
        row = row.copy()
        for id in set(before):
            row[id] = row[id] / np.float32(1.5) if row[id] > 0 else row[id] * np.float32(1.5)
        for id in set(output):
            row[id] = row[id] - np.float32(0.25 * output.count(id)) - np.float32(0.5)
        row[7] += 2
        row[9] -= 1
        row[[11, 40, *forbidden]] = -np.inf
        return row

    def test_edited_rows(self):
        self.push(first_row=0)
        self.push(first_row=2, draft_rows=1)
        self.assertEqual((self.used[0], self.used[2]), (4, 4))
        for kind in KINDS:
            logits = rounded(2 * floats(np.random.default_rng(7), 3, STRIDE), kind)
            before = to_float(logits)
            expected = before.copy()
            expected[0, :VOCAB] = self.edited(before[0, :VOCAB], [1, 2, 3], [3, 3], [8, 4])
            expected[1, :VOCAB] = self.edited(before[1, :VOCAB], [1, 2, 3, 5], [3, 3, 5], [])
            expected[2, :VOCAB] = self.edited(before[2, :VOCAB], [], [], [])
            expected = rounded(expected, kind)
            stats, _ = sampled(logits, samplings(3, temperature=0.0), **self.tables)
            np.testing.assert_array_equal(logits, expected)
            tokens = to_float(expected)[:, :VOCAB].argmax(axis=1)
            np.testing.assert_array_equal(flexdraft.row_stats(stats, "token"), tokens)

    def test_misuse(self):
        def refused(text, **options):
            with self.assertRaisesRegex(ValueError, text):
                self.push(first_row=0, **options)

        refused("repetition penalty must be finite and above 0", repetition_penalty=0.0)
        refused("id 45 of the logit bias is out of vocabulary", logit_bias={45: 1.0})
        refused("`prompt_len` is 5", prompt_len=5)
        refused("`tokens` is -1", tokens=[-1])
        refused(r"`allowed` has the shape \[1\], expected \[2\]", allowed=self.allowed[:1])
        self.used[1] = 20
        refused("`edits` has room for 20 entries", draft=[])
        self.assertFalse(self.tables["row_edits"].any())
        self.used[1] = 0
        self.push(first_row=0)
        self.push(first_row=2, draft_rows=1)
        logits = np.zeros((3, STRIDE), np.float32)
        calibrator = dict(hidden=np.zeros((3, 8), np.uint16), weight=np.zeros((VOCAB, 8), np.uint16))
        with self.assertRaisesRegex(ValueError, "no calibration of edited logits"):
            sampled(logits, samplings(3), **self.tables, **calibrator)
        with self.assertRaisesRegex(ValueError, "`row_edits` is absent"):
            sampled(logits, samplings(3), masks=self.tables["masks"])


class Acceptance(unittest.TestCase):
    kind = np.float32

    def setUp(self):
        self.random = np.random.default_rng(4)
        self.target = rounded(2 * floats(self.random, 4, STRIDE), self.kind)

    def accepted(self, rule, kind, tokens, sampling, seed=0, **options):
        """Verifies draft tokens with the groups 0, 1 and 3. Returns the verdict's fields, and the committed tokens."""
        stats, partials = sampled(self.target, sampling)
        sequences = np.zeros((1, flexdraft.VERIFY_BYTES), np.uint8)
        flexdraft.verify(sequences, 0, rule=rule, draft=kind, position=20, drafts=len(tokens), first_target=0,
                         first_token=0, seed=seed, groups=[0, 1, 3])
        verdicts, committed = np.zeros((1, flexdraft.VERDICT_BYTES), np.uint8), np.zeros((1, 64), np.int32)
        workspace = np.zeros(flexdraft.accept_workspace_len(1, VOCAB), np.float32)
        arrived = np.zeros(1, np.uint32)
        flexdraft.accept(sequences, np.array(tokens, np.int32), self.target, stats, verdicts, committed, arrived,
                         workspace, vocab=VOCAB, target_partials=partials, any_block=rule == Rule.BLOCK, **options)
        self.assertEqual(arrived[0], 0)
        names = ("accepted", "bonus", "group", "cached_length", "fault")
        return [int(flexdraft.verdict(verdicts, name)[0]) for name in names], list(committed[0])

    def test_match(self):
        best = [int(token) for token in to_float(self.target)[:, :VOCAB].argmax(axis=1)]
        greedy = samplings(4, temperature=0.0)
        for length, group in enumerate((0, 1, -1, 2)):
            tokens = best[:3]
            if length < 3:
                tokens[length] = (tokens[length] + 1) % VOCAB
            found, committed = self.accepted(Rule.MATCH, DraftKind.CERTAIN, tokens, greedy)
            self.assertEqual(found, [length, best[length], group, 21 + length, 0])
            self.assertEqual(committed, best[:length + 1] + [-1] * (63 - length))

    def test_a_draft_from_the_targets_distribution_is_accepted(self):
        sampling = samplings(4, temperature=0.8, purpose=Purpose.TARGET, seed=11)
        draft = self.target[:3].copy()
        draft_stats, _ = sampled(draft, samplings(3, temperature=0.8, purpose=Purpose.DRAFT, seed=11))
        tokens = flexdraft.row_stats(draft_stats, "token")
        for rule in (Rule.REJECTION, Rule.BLOCK):
            found, committed = self.accepted(rule, DraftKind.LOGITS, tokens, sampling, seed=11, draft=draft,
                                             draft_stats=draft_stats)
            self.assertEqual(found[0], 3, rule)
            self.assertEqual(committed[:3], list(tokens))

    def test_an_impossible_token_is_rejected(self):
        self.target[1, :VOCAB] = rounded(np.full(VOCAB, -np.inf), self.kind)
        self.target[1, 7] = 0
        sampling = samplings(4, temperature=0.8, purpose=Purpose.TARGET, seed=11)
        draft = self.target[:3].copy()
        draft[1, :VOCAB] = 0
        draft_stats, _ = sampled(draft, samplings(3, temperature=0.8, purpose=Purpose.DRAFT, seed=11))
        tokens = flexdraft.row_stats(draft_stats, "token").copy()
        self.assertNotEqual(tokens[1], 7)
        # The first token is certain, and after it only id 7 is possible, so block verification decides the same.
        for rule in (Rule.REJECTION, Rule.BLOCK):
            found, committed = self.accepted(rule, DraftKind.LOGITS, tokens, sampling, seed=11, draft=draft,
                                             draft_stats=draft_stats)
            self.assertEqual(found[:2], [1, 7], rule)
            self.assertEqual(committed[:3], [tokens[0], 7, -1], rule)


class AcceptanceInBf16(Acceptance):
    """The same with logits of bf16."""

    kind = np.uint16


class AcceptanceInF16(Acceptance):
    """The same with logits of f16."""

    kind = np.float16


class Drafts(unittest.TestCase):
    def test_select_drafts(self):
        drafts, verdicts = np.zeros((1, flexdraft.DRAFT_BYTES), np.uint8), np.zeros(1, VERDICT)
        flexdraft.draft(drafts, 0, sequence=0, groups=[0, 1, 3], first_slot=4, slots=4, first_draft=0)
        verdicts["accepted"], verdicts["bonus"], verdicts["group"], verdicts["cached_length"] = 3, 17, 2, 24
        bonus, starts = np.zeros(1, np.int32), np.zeros(1, np.int32)
        sources, rows = np.zeros(3, np.int32), np.zeros(3, np.int32)
        verdict_bytes = verdicts.view(np.uint8).reshape(1, flexdraft.VERDICT_BYTES)
        flexdraft.select_drafts(drafts, verdict_bytes, bonus, starts, sources, rows)
        self.assertEqual((bonus[0], starts[0]), (17, 24))
        self.assertEqual(list(sources), [4 + 2 * 4 + 1, 4 + 2 * 4 + 2, 4 + 2 * 4 + 3])
        self.assertEqual(list(rows), [0, 1, 2])
        verdicts["accepted"], verdicts["group"] = 2, -1
        flexdraft.select_drafts(drafts, verdict_bytes, bonus, starts, sources, rows)
        self.assertEqual(list(sources) + list(rows), [-1] * 6)

    def test_a_chain(self):
        for kind in KINDS:
            with self.subTest(kind.__name__):
                self.chain(kind)

    def chain(self, kind):
        random, rows, count, rank = np.random.default_rng(5), 3, 4, 6
        logits = rounded(2 * floats(random, rows, STRIDE), kind)
        _, partials = sampled(logits, samplings(rows), sample=flexdraft.sample_partials)
        ids, chosen = np.zeros((rows, count), np.int32), np.zeros((rows, count), np.float32)
        flexdraft.chain_choose(logits, partials, ids, chosen, vocab=VOCAB, calibrated=False)
        expected = np.argsort(-to_float(logits)[:, :VOCAB], axis=1, kind="stable")[:, :count]
        np.testing.assert_array_equal(ids, expected)
        np.testing.assert_array_equal(chosen, np.take_along_axis(to_float(logits), expected, axis=1))

        before, after = floats(random, 1 + rows * count, 8), rounded(floats(random, rows * count, 8), kind)
        scores = np.zeros((rows, count, count), np.float32)
        flexdraft.chain_score(before, after, np.zeros(rows, np.int32), scores, rank=rank, drafts=1)
        factors = to_float(after)[:, :rank].reshape(rows, count, rank)
        np.testing.assert_allclose(scores[0, 0], factors[0] @ before[0, :rank], atol=1e-5)
        for row in range(1, rows):
            left = before[1 + (row - 1) * count:][:count, :rank]
            np.testing.assert_allclose(scores[row], left @ factors[row].T, atol=1e-5)

        drafts = np.zeros((1, flexdraft.DRAFT_BYTES), np.uint8)
        flexdraft.draft(drafts, 0, sequence=0, groups=[0], first_slot=0, slots=rows + 1, first_draft=0)
        stats = np.zeros((rows, flexdraft.ROW_STATS_BYTES), np.uint8)
        chained = chosen.copy()
        flexdraft.chain_walk(drafts, samplings(rows, temperature=0.0), ids, scores, chained, stats)
        last = 0
        for row in range(rows):
            row_logits = chosen[row] + scores[row, last]
            np.testing.assert_allclose(chained[row], row_logits, atol=1e-5)
            last = int(row_logits.argmax())
            self.assertEqual(flexdraft.row_stats(stats, "token")[row], ids[row, last])


class Tables(unittest.TestCase):
    def test_draft(self):
        table = np.zeros((2, flexdraft.DRAFT_BYTES), np.uint8)
        flexdraft.draft(table, 1, sequence=3, groups=[0, 63], first_slot=4, slots=5, first_draft=6,
                        rows=DraftRows.LOGIT_SLOTS)
        row = table[1].view(DRAFT)[0]
        self.assertFalse(table[0].any())
        self.assertEqual(row["groups"], 1 | 1 << 63)
        self.assertEqual([int(row[name]) for name in ("sequence", "first_slot", "slots", "first_draft", "in_logits")],
                         [3, 4, 5, 6, 1])


if __name__ == "__main__":
    unittest.main()
