"""flexdraft's kernels on PyTorch's tensors and streams, through the C interface of the crate ffi."""

import ctypes
import os
import pathlib

import torch

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent.parent
U64, F64, I32, TEXT = ctypes.c_uint64, ctypes.c_double, ctypes.c_int32, ctypes.c_char_p
POINTER = ctypes.c_void_p


def struct(name: str, *fields: str, **others) -> type:
    """Returns a ctypes struct type whose fields are u64, except for the fields in `others`, which name their type."""
    declared = [(field, others.get(field, U64)) for field in fields]
    return type(name, (ctypes.Structure,), {"_fields_": declared})


# These structs mirror the structs of the C interface in ffi/src/operands.rs.
PassLayout = struct("PassLayout", "page_ids", "batch", "pages_each", "pages", "page_size", "start", "candidates",
                    "groups", "slots")
AttentionOperands = struct("AttentionOperands", "qkv", "k", "v", "out", "workspace", "workspace_len", "q_heads",
                           "kv_heads", "head_dim")
SampleOperands = struct("SampleOperands", "logits", "sampling", "hidden", "weight", "bias", "workspace",
                        "workspace_len", "stats", "rows", "vocab", "stride", "rank")
AcceptOperands = struct("AcceptOperands", "sequences", "tokens", "target", "target_stats", "draft", "draft_stats",
                        "workspace", "workspace_len", "arrived", "verdicts", "committed", "batch", "drafts", "vocab",
                        "stride", "block")
SamplingRule = struct("SamplingRule", "seed", "position", "temperature", "top_p", "top_k", temperature=F64, top_p=F64)
VerifyRule = struct("VerifyRule", "rule", "seed", "position", "drafts")

SAMPLING, STATS, VERIFY, VERDICT = range(4)  # arguments of flexdraft_bytes
COMMITTED = 64  # largest number of tokens that a sequence commits


def library_path() -> pathlib.Path:
    """Returns the path of the C interface's library: named by FLEXDRAFT_FFI, beside this script in a bundle, or built
    by cargo."""
    name = "libflexdraft_ffi.so"
    places = [os.environ.get("FLEXDRAFT_FFI"), pathlib.Path(__file__).parent / name,
              ROOT / "target/release" / name, ROOT / "target/debug" / name]
    for place in places:
        if place and pathlib.Path(place).exists():
            return pathlib.Path(place)
    raise FileNotFoundError(f"{name}: build it with `cargo build --release -p flexdraft-ffi`")


class Ours:
    """The kernels of flexdraft, loaded for the device "cuda", or for "cpu", where the SIMT emulator runs them."""

    def __init__(self, device: str):
        self.device = device
        self.library = ctypes.CDLL(str(library_path()))
        self._declare()
        text = ctypes.create_string_buffer(1024)
        ordinal = torch.cuda.current_device() if device == "cuda" else -1
        self.handle = self.library.flexdraft_open(ordinal, text, len(text))
        if not self.handle:
            raise RuntimeError(text.value.decode())

    def _declare(self):
        declared = {
            "open": (POINTER, [I32, TEXT, ctypes.c_size_t]),
            "error": (TEXT, [POINTER]),
            "pass": (POINTER, [POINTER, U64, POINTER]),
            "pass_free": (None, [POINTER]),
            "attention": (I32, [POINTER, U64, POINTER, POINTER]),
            "sample": (I32, [POINTER, U64, POINTER]),
            "accept": (I32, [POINTER, U64, POINTER]),
            "bytes": (U64, [I32]),
            "row_sampling": (I32, [POINTER, POINTER, U64, POINTER]),
            "verify": (I32, [POINTER, POINTER, U64, POINTER]),
            "attention_workspace": (U64, [U64] * 4),
            "sample_workspace": (U64, [U64, U64, I32]),
            "accept_workspace": (U64, [U64, U64]),
        }
        for name, (result, arguments) in declared.items():
            function = getattr(self.library, f"flexdraft_{name}")
            function.restype, function.argtypes = result, arguments

    @property
    def stream(self) -> int:
        return torch.cuda.current_stream().cuda_stream if self.device == "cuda" else 0

    def check(self, ok):
        """Raises the error of the last call unless its status `ok` is 0."""
        if ok != 0:
            raise RuntimeError(self.library.flexdraft_error(self.handle).decode())

    def bytes(self, what: int, count: int) -> torch.Tensor:
        """Returns zeroed memory for `count` of the kernels' structs of kind `what`, whose size the C interface reports."""
        return torch.zeros(count * self.library.flexdraft_bytes(what), dtype=torch.uint8, device=self.device)

    def zeros(self, count: int, dtype) -> torch.Tensor:
        return torch.zeros(count, dtype=dtype, device=self.device)

    def attention(self, shape, qkv, k, v, page_ids, out):
        """Returns a function that launches joint attention over the given tensors; `page_ids` is [batch, pages each]."""
        ids = page_ids.to(torch.int32).cpu().contiguous()
        layout = PassLayout(ids.data_ptr(), shape.batch, ids.shape[1], k.shape[0], shape.page_size, shape.context,
                            shape.candidates, shape.groups, shape.slots)
        tables = self.library.flexdraft_pass(self.handle, self.stream, ctypes.byref(layout))
        if not tables:
            self.check(1)
        elements = self.library.flexdraft_attention_workspace(shape.q_heads, shape.head_dim, qkv.shape[0], shape.seen)
        workspace = self.zeros(elements, torch.float32)
        operands = AttentionOperands(qkv.data_ptr(), k.data_ptr(), v.data_ptr(), out.data_ptr(),
                                     workspace.data_ptr(), elements, shape.q_heads, shape.kv_heads, shape.head_dim)
        kept = (workspace, qkv, k, v, out)

        def launch():
            # The launch must use the stream that the pass's tables were made on, or the call fails.
            assert kept
            self.check(self.library.flexdraft_attention(self.handle, self.stream, tables, ctypes.byref(operands)))
            return out

        launch.free = lambda: self.library.flexdraft_pass_free(tables)
        return launch

    def row_sampling(self, rows: int, temperature=1.0, top_k=0, top_p=1.0) -> torch.Tensor:
        host = torch.zeros(rows * self.library.flexdraft_bytes(SAMPLING), dtype=torch.uint8)
        rule = SamplingRule(9, 100, temperature, top_p, top_k)
        self.check(self.library.flexdraft_row_sampling(self.handle, ctypes.byref(rule), rows, host.data_ptr()))
        return host.to(self.device)

    def sample(self, logits, vocab: int, sampling, calibrator=None):
        """Returns a function that samples `logits` [rows, stride], and the memory to which it writes the rows'
        statistics."""
        rows, stride = logits.shape
        hidden, weight, bias = calibrator or (None, None, None)
        elements = self.library.flexdraft_sample_workspace(rows, vocab, int(calibrator is not None))
        workspace, stats = self.zeros(elements, torch.float32), self.bytes(STATS, rows)
        address = [0 if tensor is None else tensor.data_ptr() for tensor in (hidden, weight, bias)]
        rank = 0 if hidden is None else hidden.shape[1]
        operands = SampleOperands(logits.data_ptr(), sampling.data_ptr(), *address, workspace.data_ptr(), elements,
                                  stats.data_ptr(), rows, vocab, stride, rank)
        kept = (logits, sampling, calibrator, workspace)

        def launch():
            assert kept
            self.check(self.library.flexdraft_sample(self.handle, self.stream, ctypes.byref(operands)))
            return stats

        return launch, stats

    def accept(self, rule: str, drafts: int, vocab: int, tokens, target, target_stats, draft, draft_stats):
        """Returns a function that verifies a batch of drafts, and the tensors of verdicts and committed tokens."""
        batch, stride = tokens.shape[0], target.shape[1]
        host = torch.zeros(batch * self.library.flexdraft_bytes(VERIFY), dtype=torch.uint8)
        number = ["match", "rejection", "block"].index(rule)
        wanted = VerifyRule(number, 9, 100, drafts)
        self.check(self.library.flexdraft_verify(self.handle, ctypes.byref(wanted), batch, host.data_ptr()))
        sequences = host.to(self.device)
        elements = self.library.flexdraft_accept_workspace(batch, vocab)
        workspace, arrived = self.zeros(elements, torch.float32), self.zeros(batch, torch.int32)
        verdicts, committed = self.bytes(VERDICT, batch), self.zeros(batch * COMMITTED, torch.int32)
        operands = AcceptOperands(
            sequences.data_ptr(), tokens.data_ptr(), target.data_ptr(), target_stats.data_ptr(), draft.data_ptr(),
            draft_stats.data_ptr(), workspace.data_ptr(), elements, arrived.data_ptr(), verdicts.data_ptr(),
            committed.data_ptr(), batch, drafts, vocab, stride, int(rule == "block"))
        kept = (sequences, tokens, target, target_stats, draft, draft_stats, workspace, arrived)

        def launch():
            assert kept
            self.check(self.library.flexdraft_accept(self.handle, self.stream, ctypes.byref(operands)))
            return committed

        return launch, verdicts.view(torch.int32).view(batch, -1), committed.view(batch, COMMITTED)


def statistics(stats: torch.Tensor) -> dict[str, torch.Tensor]:
    """Returns the fields of `FlexdraftRowStats` (cuda/sampling/params.h), each as a tensor."""
    words = stats.view(torch.int32).view(-1, 12)
    floats = stats.view(torch.float32).view(-1, 12)
    return {"token": words[:, 0], "log_sum": floats[:, 2], "probability": floats[:, 3], "confidence": floats[:, 4],
            "kept": words[:, 10]}
