"""Rows of the residual stream against NumPy."""

import unittest

import flexdraft
import numpy as np
from oracles import bf16s, floats, rms_norm, silu, to_bf16, to_float


class Rows(unittest.TestCase):
    def setUp(self):
        self.random = np.random.default_rng(1)

    def test_embed_and_gather_copy_rows(self):
        table, error = bf16s(self.random, 5, 24), np.zeros(1, np.uint32)
        for copy, fault in ((flexdraft.embed, 2), (flexdraft.gather, 16)):
            ids, out = np.array([4, 0, 4], np.int32), np.zeros((3, 24), np.uint16)
            copy(ids, table, out)
            np.testing.assert_array_equal(out, table[ids])
            error[0] = 0
            copy(np.array([1, 5, 2], np.int32), table, out, error=error)
            np.testing.assert_array_equal(out, np.stack([table[1], np.zeros(24, np.uint16), table[2]]))
            self.assertEqual(error[0], fault)

    def test_rms_norm(self):
        x, delta, weight = bf16s(self.random, 3, 40), bf16s(self.random, 3, 40), floats(self.random, 40)
        before, out = x.copy(), np.zeros_like(x)
        flexdraft.rms_norm(x, weight, out, 1e-5)
        np.testing.assert_array_equal(x, before)
        np.testing.assert_allclose(to_float(out), rms_norm(to_float(x), weight, 1e-5), rtol=2**-8)
        flexdraft.rms_norm(x, weight, out, 1e-5, delta=delta)
        np.testing.assert_array_equal(x, to_bf16(to_float(before) + to_float(delta)))
        np.testing.assert_allclose(to_float(out), rms_norm(to_float(x), weight, 1e-5), rtol=2**-8)

    def test_f16(self):
        x, delta, gates = (floats(self.random, 3, cols).astype(np.float16) for cols in (40, 40, 80))
        weight, before, out = floats(self.random, 40), x.copy(), np.zeros_like(x)
        flexdraft.rms_norm(x, weight, out, 1e-5, delta=delta)
        np.testing.assert_array_equal(x, before + delta)
        np.testing.assert_allclose(out, rms_norm(x, weight, 1e-5), rtol=2**-11, atol=2**-24)
        flexdraft.silu_mul(gates, out)
        gate, up = np.split(gates.astype(np.float64), 2, axis=-1)
        np.testing.assert_allclose(out, silu(gate) * up, rtol=2**-11, atol=2**-24)
        # A sum above the range is infinite.
        largest = np.full((1, 8), np.finfo(np.float16).max)
        flexdraft.add(largest, largest.copy())
        self.assertTrue(np.isposinf(largest).all())

    def test_a_read_only_array_may_be_read(self):
        x, weight, out = bf16s(self.random, 2, 16), floats(self.random, 16), np.zeros((2, 16), np.uint16)
        for array in (x, weight):
            array.flags.writeable = False
        flexdraft.rms_norm(x, weight, out, 1e-5)
        self.assertTrue(out.any())
        with self.assertRaisesRegex(ValueError, "read-only"):
            flexdraft.rms_norm(x, weight, out, 1e-5, delta=out)

    def test_add(self):
        x, delta = bf16s(self.random, 2, 16), bf16s(self.random, 2, 16)
        expected = to_bf16(to_float(x) + to_float(delta))
        flexdraft.add(x, delta)
        np.testing.assert_array_equal(x, expected)

    def test_activations(self):
        x, out = bf16s(self.random, 3, 32), np.zeros((3, 16), np.uint16)
        flexdraft.silu_mul(x, out)
        gate, up = np.split(to_float(x), 2, axis=1)
        np.testing.assert_allclose(to_float(out), silu(gate) * up, rtol=2**-7)
        x, bonus, error = bf16s(self.random, 3, 16), bf16s(self.random, 2, 16), np.zeros(1, np.int32)
        before = x.copy()
        flexdraft.silu_add(x, bonus, np.array([1, -1, 7], np.int32), error=error)
        np.testing.assert_allclose(to_float(x[0]), silu(to_float(before[0]) + to_float(bonus[1])), rtol=2**-6, atol=2**-8)
        np.testing.assert_array_equal(x[1:], before[1:])
        self.assertEqual(error[0], 16)


if __name__ == "__main__":
    unittest.main()
