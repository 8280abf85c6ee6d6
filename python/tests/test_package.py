"""The package as a whole: tables, limits, errors, and that no function of the library is missing."""

import inspect
import pathlib
import re
import subprocess
import sys
import unittest

import flexdraft
import numpy as np
from flexdraft import DraftKind, Purpose, Rule
from oracles import ROW_SAMPLING, VERIFY

PACKAGE = pathlib.Path(flexdraft.__file__).parent
EXAMPLE = pathlib.Path(__file__).resolve().parent.parent / "examples" / "step.py"


class Package(unittest.TestCase):
    def test_every_function_of_the_library_is_called(self):
        library = (PACKAGE / "libflexdraft_ffi.so").read_bytes()
        exported = {name.decode() for name in re.findall(rb"\0__tvm_ffi_(\w+)(?=\0)", library)}
        source = "".join(path.read_text() for path in PACKAGE.glob("*.py"))
        called = set(re.findall(r'\b(?:run|_sample)\(\s*"(\w+)"', source))
        self.assertEqual(called, exported)
        self.assertGreaterEqual(len(exported), 27)

    def test_every_function_has_hints_and_a_text(self):
        for name in flexdraft.__all__:
            found = getattr(flexdraft, name)
            if inspect.isfunction(found):
                hints = inspect.signature(found)
                parameters = [p.annotation for p in hints.parameters.values()] + [hints.return_annotation]
                self.assertNotIn(inspect.Parameter.empty, parameters, name)
                self.assertRegex(found.__doc__, "Raises:|raises its errors", name)

    def test_the_wheel_is_installed(self):
        # The tests are to find the wheel, not the sources beside them.
        self.assertNotEqual(PACKAGE.parent, EXAMPLE.parent.parent)

    def test_the_example_says_that_it_needs_pytorch(self):
        without = "import sys; sys.modules['torch'] = None; import runpy; runpy.run_path(sys.argv[1])"
        ran = subprocess.run([sys.executable, "-c", without, str(EXAMPLE)], capture_output=True, text=True)
        self.assertEqual(ran.returncode, 1)
        self.assertIn("needs PyTorch", ran.stderr)
        self.assertNotIn("Traceback", ran.stderr)


class Tables(unittest.TestCase):
    def test_row_sampling(self):
        table = np.zeros((2, flexdraft.ROW_SAMPLING_BYTES), np.uint8)
        flexdraft.row_sampling(table, 1, temperature=0.5, top_k=7, top_p=0.9, purpose=Purpose.TARGET, seed=2**64 - 3,
                               position=12, sequence=4)
        row = table[1].view(ROW_SAMPLING)[0]
        self.assertFalse(table[0].any())
        self.assertEqual([int(row[name]) for name in ("seed", "position", "top_k", "sequence")],
                         [2**64 - 3, 12, 7, 4])
        self.assertEqual((row["inverse_temperature"], row["top_p"]), (2, np.float32(0.9)))

    def test_verify(self):
        table = np.zeros((1, flexdraft.VERIFY_BYTES), np.uint8)
        flexdraft.verify(table, 0, rule=Rule.BLOCK, draft=DraftKind.LOGITS, position=30, drafts=5, first_target=6,
                         first_token=7, seed=9, first_draft=8, groups=[1, 4])
        row = table.view(VERIFY)[0, 0]
        self.assertEqual([int(row[name]) for name in ("seed", "groups", "position", "rule", "drafts", "first_target",
                                                      "first_draft")], [9, 0b10010, 30, 2, 5, 6, 8])

    def test_supports(self):
        shape = dict(q_heads=32, kv_heads=8, head_dim=128, vocab=151936, hidden=4096, intermediate=12288, rank=512)
        self.assertIs(flexdraft.supports(**shape), True)
        with self.assertRaisesRegex(ValueError, "head_dim is 96"):
            flexdraft.supports(**{**shape, "head_dim": 96})
        self.assertIs(flexdraft.supports(**shape, hidden_chain_rank=24), True)
        with self.assertRaisesRegex(ValueError, "rank of the chain is 20; the kernels support multiples of 8"):
            flexdraft.supports(**shape, hidden_chain_rank=20)


class Misuse(unittest.TestCase):
    def setUp(self):
        self.x = np.zeros((2, 16), np.uint16)

    def refused(self, kind, words, function, *arguments, **options):
        with self.assertRaisesRegex(kind, words):
            function(*arguments, **options)

    def test_types(self):
        self.refused(TypeError, "`x` has elements of f32, expected bf16", flexdraft.add, self.x.astype(np.float32), self.x)
        f16 = self.x.astype(np.float16)
        self.refused(TypeError, "`delta` has elements of type bf16, expected f16", flexdraft.add, f16, self.x)
        self.refused(TypeError, "f64", flexdraft.add, self.x.astype(np.float64), self.x)
        self.refused(TypeError, "expected numbers", flexdraft.add, self.x.astype(str), self.x)
        self.refused(TypeError, "byte order", flexdraft.add, self.x.astype(">u2"), self.x)
        self.refused(TypeError, "`x` is an integer, expected a tensor", flexdraft.add, 1, self.x)
        self.refused(TypeError, "`delta` is None", flexdraft.add, self.x, None)
        self.refused(TypeError, "expected a tensor", flexdraft.add, [1.0], self.x)
        self.refused(TypeError, "expected a number", flexdraft.rms_norm, self.x, np.zeros(16, np.float32), self.x, "1")
        self.refused(TypeError, "missing 1 required", flexdraft.add, self.x)

    def test_shapes_and_strides(self):
        self.refused(ValueError, r"`delta` has the shape \[2, 8\]", flexdraft.add, self.x, self.x[:, :8].copy())
        self.refused(ValueError, "contiguous", flexdraft.add, self.x[:, ::2], self.x[:, ::2])
        self.refused(ValueError, "16 bytes", flexdraft.add, np.zeros(34, np.uint16)[1:33].reshape(2, 16), self.x)
        odd = np.ndarray((2, 16), np.float32, np.zeros(256, np.uint8), strides=(66, 4))
        self.refused(ValueError, "whole elements", flexdraft.rms_norm, odd, odd, odd, 1.0)

    def test_outputs_that_are_read_only(self):
        self.x.flags.writeable = False
        self.refused(ValueError, "read-only", flexdraft.silu_mul, np.zeros((2, 32), np.uint16), self.x)

    def test_passes(self):
        tables = flexdraft.PassTables(max_batch=1, max_pages=2)

        def upload(pages, groups=(0,), **options):
            rows = flexdraft.SequenceRows(pages, start=3, candidates=2, groups=groups, slots=4)
            tables.upload([rows], pages=2, page_size=options.get("page_size", 16))

        upload([0, 1])
        self.refused(ValueError, "page id 7", upload, [0, 7])
        self.refused(ValueError, "`page_ids` is -1", upload, [0, -1])
        self.refused(ValueError, "64 bits", upload, [0, 2**64])
        self.refused(ValueError, "3 pages", upload, [0, 1, 0])
        self.refused(ValueError, "accepted length 64", upload, [0, 1], groups=[0, 64])
        self.refused(ValueError, "device is tpu", flexdraft.PassTables, "tpu", max_batch=1, max_pages=1)
        self.refused(TypeError, "an object of pass_tables", flexdraft.attention_workspace_len,
                     type("Other", (), {"_object": self.x})(), 1, q_heads=1, kv_heads=1, head_dim=64)

    def test_tables_and_workspaces(self):
        table = np.zeros((2, flexdraft.ROW_SAMPLING_BYTES), np.uint8)
        self.refused(ValueError, "`row` is 2", flexdraft.row_sampling, table, 2)
        self.refused(ValueError, "temperature", flexdraft.row_sampling, table, 0, temperature=-1.0)
        self.refused(ValueError, "top_p|top-p", flexdraft.row_sampling, table, 0, top_p=0.0)
        self.refused(ValueError, "`rows` is -1", flexdraft.sample_workspace_len, -1, 8)
        self.refused(ValueError, "accepted length -1", flexdraft.verify, np.zeros((1, 48), np.uint8), 0, rule=0, draft=0,
                     position=0, drafts=0, first_target=0, first_token=0, groups=[-1])
        logits, stats = np.zeros((2, 16), np.float32), np.zeros((2, flexdraft.ROW_STATS_BYTES), np.uint8)
        self.refused(ValueError, "workspace", flexdraft.sample, logits, table, stats, np.zeros(0, np.float32), vocab=10)


if __name__ == "__main__":
    unittest.main()
