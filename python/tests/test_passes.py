"""Passes, rotary embedding and attention against NumPy."""

import gc
import unittest

import flexdraft
import numpy as np
from oracles import VERDICT, attention, floats, halves, rms_norm, rotated, to_float

Q_HEADS, KV_HEADS, HEAD_DIM, PAGES, PAGE_SIZE = 4, 2, 64, 6, 16
QKV_COLS = (Q_HEADS + 2 * KV_HEADS) * HEAD_DIM
SEQUENCES = [
    flexdraft.SequenceRows(pages=[5, 0, 3], start=33, candidates=3, groups=[0, 2], slots=4),
    flexdraft.SequenceRows(pages=[1], start=6, candidates=2, groups=[1], slots=3),
]


def layout():
    """Returns the sequence, the position and the group (accepted length, first row, slots) of every row."""
    rows = [(s, sequence.start + i, None) for s, sequence in enumerate(SEQUENCES) for i in range(sequence.candidates)]
    for s, sequence in enumerate(SEQUENCES):
        for group in sequence.groups:
            first = len(rows)
            for slot in range(sequence.slots):
                rows.append((s, sequence.start + group + 1 + slot, (group, first, sequence.slots)))
    return rows


class Passes(unittest.TestCase):
    kind, roundoff = np.uint16, 2**-8

    def setUp(self):
        self.random = np.random.default_rng(2)
        self.tables = flexdraft.PassTables(max_batch=2, max_pages=3)
        self.tables.upload(SEQUENCES, pages=PAGES, page_size=PAGE_SIZE)
        self.rows = layout()

    def inverse_frequencies(self):
        return (10000.0 ** (-np.arange(HEAD_DIM // 2) / (HEAD_DIM // 2))).astype(np.float32)

    def angles(self):
        positions = np.array([position for _, position, _ in self.rows], np.float64)
        return positions[:, None] * self.inverse_frequencies()[None, :].astype(np.float64)

    def test_rope_table(self):
        cos_sin = np.full((len(self.rows) + 1, HEAD_DIM // 2, 2), 7, np.float32)
        flexdraft.rope_table(self.tables, self.inverse_frequencies(), cos_sin, scale=0.5)
        angles = self.angles()
        expected = 0.5 * np.stack([np.cos(angles), np.sin(angles)], axis=-1)
        np.testing.assert_allclose(cos_sin[:-1], expected, atol=5e-6)
        self.assertFalse(cos_sin[-1].any())

    def appended(self, cache_of_heads_first=False):
        """Returns qkv before and after the rotation of all rows, and the cache before and after."""
        qkv = halves(self.random, self.kind, len(self.rows), QKV_COLS)
        k, v = (halves(self.random, self.kind, PAGES, PAGE_SIZE, KV_HEADS, HEAD_DIM) for _ in "kv")
        if cache_of_heads_first:
            k, v = (np.ascontiguousarray(part.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3) for part in (k, v))
        before = qkv.copy(), k.copy(), v.copy()
        cos_sin = np.zeros((len(self.rows), HEAD_DIM // 2, 2), np.float32)
        flexdraft.rope_table(self.tables, self.inverse_frequencies(), cos_sin)
        q_norm, k_norm = floats(self.random, HEAD_DIM), floats(self.random, HEAD_DIM)
        for masks in (False, True):
            flexdraft.norm_rope_append(self.tables, qkv, cos_sin, k, v, q_heads=Q_HEADS, masks=masks, q_norm=q_norm,
                                       k_norm=k_norm, eps=1e-5)
        return before, (qkv, k, v), (q_norm, k_norm)

    def test_norm_rope_append(self):
        (qkv_before, k_before, v_before), (qkv, k, v), (q_norm, k_norm) = self.appended()
        heads_before = to_float(qkv_before).reshape(len(self.rows), -1, HEAD_DIM)
        heads = qkv.reshape(len(self.rows), -1, HEAD_DIM)
        angles = self.angles()
        for row, (s, position, group) in enumerate(self.rows):
            q, new_k = heads_before[row, :Q_HEADS], heads_before[row, Q_HEADS:Q_HEADS + KV_HEADS]
            close = dict(rtol=4 * self.roundoff, atol=8 * self.roundoff)
            np.testing.assert_allclose(to_float(heads[row, :Q_HEADS]),
                                       rotated(rms_norm(q, q_norm, 1e-5), angles[row]), **close)
            expected = rotated(rms_norm(new_k, k_norm, 1e-5), angles[row])
            if group is None:
                page, token = SEQUENCES[s].pages[position // PAGE_SIZE], position % PAGE_SIZE
                np.testing.assert_allclose(to_float(k[page, token]), expected, **close)
                np.testing.assert_array_equal(v[page, token], qkv_before.reshape(heads.shape)[row, Q_HEADS + KV_HEADS:])
                k_before[page, token], v_before[page, token] = k[page, token], v[page, token]
            else:
                np.testing.assert_allclose(to_float(heads[row, Q_HEADS:Q_HEADS + KV_HEADS]), expected, **close)
        # Nothing else in the cache changed.
        np.testing.assert_array_equal(k, k_before)
        np.testing.assert_array_equal(v, v_before)

    def attended(self, qkv, k, v, **options):
        length = flexdraft.attention_workspace_len(self.tables, len(self.rows), q_heads=Q_HEADS, kv_heads=KV_HEADS,
                                                   head_dim=HEAD_DIM)
        out = np.zeros((len(self.rows), Q_HEADS * HEAD_DIM), self.kind)
        lse = np.zeros((len(self.rows), Q_HEADS), np.float32)
        flexdraft.joint_attention(self.tables, qkv, k, v, out, np.zeros(length, np.float32), q_heads=Q_HEADS,
                                  lse=lse, **options)
        return out, lse

    def test_joint_attention(self):
        _, (qkv, k, v), _ = self.appended()
        out, lse = self.attended(qkv, k, v)
        heads = to_float(qkv).reshape(len(self.rows), -1, HEAD_DIM)
        for row, (s, position, group) in enumerate(self.rows):
            seen = position + 1 if group is None else SEQUENCES[s].start + group[0] + 1
            at = [(SEQUENCES[s].pages[p // PAGE_SIZE], p % PAGE_SIZE) for p in range(seen)]
            for head in range(Q_HEADS):
                kv = head // (Q_HEADS // KV_HEADS)
                keys, values = (np.stack([to_float(cache[page, token, kv]) for page, token in at]) for cache in (k, v))
                if group is not None:
                    slots = heads[group[1]:group[1] + group[2]]
                    keys = np.concatenate([keys, slots[:, Q_HEADS + kv]])
                    values = np.concatenate([values, slots[:, Q_HEADS + KV_HEADS + kv]])
                expected, log_sum = attention(heads[row, head], keys, values)
                found = to_float(out[row, head * HEAD_DIM:(head + 1) * HEAD_DIM])
                np.testing.assert_allclose(found, expected, rtol=4 * self.roundoff, atol=4 * self.roundoff, err_msg=f"row {row} head {head}")
                self.assertAlmostEqual(lse[row, head], log_sum, delta=self.roundoff)

    def test_a_cache_with_heads_before_tokens_gives_the_same_bits(self):
        _, (qkv, k, v), _ = self.appended(cache_of_heads_first=True)
        self.assertFalse(k.flags.c_contiguous)
        strided, _ = self.attended(qkv, k, v)
        dense, _ = self.attended(qkv, np.ascontiguousarray(k), np.ascontiguousarray(v))
        np.testing.assert_array_equal(strided, dense)

    def test_candidates_alone(self):
        _, (qkv, k, v), _ = self.appended()
        joint, _ = self.attended(qkv, k, v)
        alone, _ = self.attended(qkv, k, v, masks=False)
        candidates = sum(sequence.candidates for sequence in SEQUENCES)
        np.testing.assert_array_equal(alone[:candidates], joint[:candidates])
        self.assertFalse((alone[candidates:] == joint[candidates:]).all())

    def test_tensors_of_their_own(self):
        (qkv_before, k_before, v_before), (qkv, k, v), (q_norm, k_norm) = self.appended()
        fused, _ = self.attended(qkv, k, v)
        candidates = sum(sequence.candidates for sequence in SEQUENCES)
        apart, cos_sin = qkv_before.copy(), np.zeros((len(self.rows), HEAD_DIM // 2, 2), np.float32)
        flexdraft.rope_table(self.tables, self.inverse_frequencies(), cos_sin)
        q_cols, k_cols = Q_HEADS * HEAD_DIM, (Q_HEADS + KV_HEADS) * HEAD_DIM
        kinds = [(part[:, :q_cols], part[:, q_cols:k_cols], part[:, k_cols:])
                 for part in (apart[:candidates], apart[candidates:])]
        for masks, (q, new_k, new_v) in enumerate(kinds):
            flexdraft.norm_rope_append(self.tables, None, cos_sin, k_before, v_before, q_heads=Q_HEADS, masks=bool(masks),
                                       q_norm=q_norm, k_norm=k_norm, eps=1e-5, q=q, k=new_k, v=new_v)
        np.testing.assert_array_equal(apart[:, :q_cols], qkv[:, :q_cols])
        np.testing.assert_array_equal(apart[candidates:], qkv[candidates:])
        np.testing.assert_array_equal(k_before, k)
        np.testing.assert_array_equal(v_before, v)
        (q, _, _), (mask_q, mask_k, mask_v) = kinds
        out, _ = self.attended(None, k, v, q=q, mask_q=mask_q, mask_k=mask_k, mask_v=mask_v)
        np.testing.assert_array_equal(out, fused)

    def test_slots_of_tokens(self):
        _, (qkv, k, v), _ = self.appended()
        pages, _ = self.attended(qkv, k, v)
        slots = flexdraft.PassTables(max_batch=2, max_pages=48)
        slots.upload([
            flexdraft.SequenceRows([page * PAGE_SIZE + token for page in s.pages for token in range(PAGE_SIZE)], s.start,
                                   s.candidates, s.groups, s.slots) for s in SEQUENCES
        ], pages=PAGES * PAGE_SIZE, page_size=1)
        self.tables = slots
        alone, _ = self.attended(qkv, *(part.reshape(-1, 1, KV_HEADS, HEAD_DIM) for part in (k, v)))
        np.testing.assert_array_equal(alone, pages)

    def test_a_window_sinks_and_a_soft_cap(self):
        start, window, cap, group, slots = 90, 70, 2.0, 1, 3
        self.tables = flexdraft.PassTables(max_batch=1, max_pages=6)
        ids = [3, 1, 5, 0, 4, 2]
        self.tables.upload([flexdraft.SequenceRows(ids, start, 2, [group], slots)], pages=PAGES, page_size=PAGE_SIZE)
        self.rows = [None] * 5
        qkv = halves(self.random, self.kind, 5, QKV_COLS)
        k, v = (halves(self.random, self.kind, PAGES, PAGE_SIZE, KV_HEADS, HEAD_DIM) for _ in "kv")
        sinks = floats(self.random, Q_HEADS)
        heads = to_float(qkv).reshape(5, -1, HEAD_DIM)
        cached = [to_float(part[ids]).reshape(-1, KV_HEADS, HEAD_DIM) for part in (k, v)]
        for options in (dict(window=window), dict(sinks=sinks), dict(soft_cap=cap),
                        dict(window=window, sinks=sinks, soft_cap=cap)):
            out, lse = self.attended(qkv, k, v, **options)
            for row in range(5):
                position = start + row if row < 2 else start + group + 1 + row - 2
                end = start + (row if row < 2 else group) + 1
                first = max(0, position + 1 - options.get("window", 1000))
                for head in range(Q_HEADS):
                    kv = head // (Q_HEADS // KV_HEADS)
                    keys, values = (part[first:end, kv] for part in cached)
                    if row >= 2:
                        keys = np.concatenate([keys, heads[2:, Q_HEADS + kv]])
                        values = np.concatenate([values, heads[2:, Q_HEADS + KV_HEADS + kv]])
                    sink = sinks[head] if "sinks" in options else -np.inf
                    expected, log_sum = attention(heads[row, head], keys, values, sink, options.get("soft_cap", np.inf))
                    found = to_float(out[row, head * HEAD_DIM:(head + 1) * HEAD_DIM])
                    np.testing.assert_allclose(found, expected, rtol=4 * self.roundoff, atol=self.roundoff,
                                               err_msg=f"{options} {row} {head}")
                    self.assertAlmostEqual(lse[row, head], log_sum, delta=self.roundoff)

    def test_follow_verdicts(self):
        drafting = flexdraft.PassTables("cpu", max_batch=1, max_pages=1)
        drafting.upload([flexdraft.SequenceRows([0], start=5, candidates=0, groups=[3], slots=4)], pages=1, page_size=16)

        def first_angle():
            cos_sin = np.zeros((4, 1, 2), np.float32)
            flexdraft.rope_table(drafting, np.ones(1, np.float32), cos_sin)
            return np.arctan2(cos_sin[:, 0, 1], cos_sin[:, 0, 0])

        def turned(positions):
            return np.arctan2(np.sin(positions), np.cos(positions))

        np.testing.assert_allclose(first_angle(), turned(np.arange(9.0, 13)), atol=1e-5)
        verdicts = np.zeros(1, VERDICT)
        verdicts["accepted"], verdicts["cached_length"] = 1, 7
        flexdraft.follow_verdicts(drafting, np.zeros(1, np.int32), verdicts.view(np.uint8).reshape(1, 32))
        np.testing.assert_allclose(first_angle(), turned(np.arange(7.0, 11)), atol=1e-5)

    def test_tables_are_freed_one_by_one(self):
        for _ in range(20):
            flexdraft.PassTables(max_batch=2, max_pages=3).upload(SEQUENCES, pages=PAGES, page_size=PAGE_SIZE)
        gc.collect()
        cos_sin = np.zeros((len(self.rows), HEAD_DIM // 2, 2), np.float32)
        flexdraft.rope_table(self.tables, self.inverse_frequencies(), cos_sin)
        self.assertTrue(cos_sin.any())


class PassesInF16(Passes):
    """The same in f16: passes whose rows and cache are arrays of float16."""

    kind, roundoff = np.float16, 2**-11


if __name__ == "__main__":
    unittest.main()
