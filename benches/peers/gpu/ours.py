"""flexdraft's kernels on PyTorch's tensors and streams, through the C interface of the crate ffi."""

import ctypes
import os
import pathlib

import torch

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent.parent
U32, U64, F32, I32, POINTER = ctypes.c_uint32, ctypes.c_uint64, ctypes.c_float, ctypes.c_int32, ctypes.c_void_p


# These structs mirror ffi/include/flexdraft.h.
class Buffer(ctypes.Structure):
    _fields_ = [("data", POINTER), ("len", U64), ("dtype", U32), ("reserved", U32)]


class Heads(ctypes.Structure):
    _fields_ = [("q_heads", U64), ("kv_heads", U64), ("head_dim", U64)]


class Cache(ctypes.Structure):
    _fields_ = [("k", Buffer), ("v", Buffer)] + [(f"{tensor}_{unit}_stride", U64) for tensor in "kv"
                                               for unit in ("page", "token", "head")]


class Error(ctypes.Structure):
    _fields_ = [("struct_size", U64), ("status", I32), ("text_bytes", U32), ("text", ctypes.c_char * 496)]


def struct(name: str, fields: str, **types) -> type:
    """Returns a ctypes struct type that begins with its size. The fields are operands, except for the fields in
    `types`."""
    declared = [("struct_size", U64)] + [(field, types.get(field, Buffer)) for field in fields.split()]
    return type(name, (ctypes.Structure,), {"_fields_": declared})


def sized(kind: type, **fields):
    """Returns a struct with its size set, and zeros in all fields that are not named."""
    return kind(struct_size=ctypes.sizeof(kind), **fields)


Sequence = struct("Sequence", "pages page_count start candidates first_group groups slots", pages=POINTER, page_count=U64,
                  start=U64, candidates=U64, first_group=U64, groups=U64, slots=U64)
PassRows = struct("PassRows", "sequences sequence_count sequence_stride pages page_size", sequences=POINTER,
                  sequence_count=U64, sequence_stride=U64, pages=U64, page_size=U64)
AttentionSize = struct("AttentionSize", "pass_ heads rows longest split with_masks reserved", pass_=POINTER, heads=Heads,
                       rows=U64, longest=U64, split=U64, with_masks=U32, reserved=U32)
JointAttention = struct("JointAttention", "pass_ heads qkv cache out lse workspace error_word split with_masks reserved",
                        pass_=POINTER, heads=Heads, cache=Cache, split=U64, with_masks=U32, reserved=U32)
SamplingParams = struct("SamplingParams", "temperature top_p min_p purpose top_k seed slot position relative sequence",
                        temperature=F32, top_p=F32, min_p=F32, purpose=U32, top_k=U64, seed=U64, slot=U64, position=U64,
                        relative=U32, sequence=U32)
Sample = struct("Sample", "vocab stride logits logit_index sampling starts draft rank hidden weight bias workspace stats "
                "error_word update reserved", vocab=U64, stride=U64, rank=U64, update=U32, reserved=U32)
VerifySequence = struct("VerifySequence", "seed position drafts first_target first_draft first_draft_stats first_token "
                        "groups rule draft", seed=U64, position=U64, drafts=U64, first_target=U64, first_draft=U64,
                        first_draft_stats=U64, first_token=U64, groups=U64, rule=U32, draft=U32)
Accept = struct("Accept", "vocab stride sequences tokens target target_stats target_partials draft draft_stats "
                "chosen_count chosen_ids chosen_logits workspace arrived verdicts committed error_word any_block reserved",
                vocab=U64, stride=U64, chosen_count=U64, any_block=U32, reserved=U32)

# Types of operands: the numbers of the tensors' types, and the numbers and sizes in bytes of the kernels' structs.
DTYPES = {torch.bfloat16: 1, torch.float32: 2, torch.int32: 3}
SAMPLING, STATS, VERIFY, VERDICT = (16, 40), (17, 48), (18, 48), (19, 32)
TARGET_DRAW, DRAFT_LOGITS, EMULATOR = 1, 1, -1
COMMITTED = 64  # entries per sequence in the committed tokens


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


def operand(tensor: torch.Tensor | None, kind: tuple[int, int] | None = None, dtype: int | None = None) -> Buffer:
    """Returns a tensor as an operand: of the kernels' structs `kind` if the tensor holds bytes, of the type `dtype` if
    torch has no such type, and absent if there is no tensor."""
    if tensor is None:
        return Buffer()
    if kind is not None:
        return Buffer(tensor.data_ptr(), tensor.numel() // kind[1], kind[0])
    return Buffer(tensor.data_ptr(), tensor.numel(), dtype or DTYPES[tensor.dtype])


class Ours:
    """The kernels of flexdraft, loaded for the device "cuda", or for "cpu", where the SIMT emulator runs them."""

    def __init__(self, device: str):
        self.device = device
        self.library = ctypes.CDLL(str(library_path()))
        self.library.flexdraft_pass_close.restype = None
        self.error = sized(Error)
        self.handle = POINTER()
        self.call("open", I32(torch.cuda.current_device() if device == "cuda" else EMULATOR), ctypes.byref(self.handle))

    def call(self, name: str, *arguments):
        """Calls a function of the C interface, and raises its error."""
        if getattr(self.library, f"flexdraft_{name}")(*arguments, ctypes.byref(self.error)) != 0:
            raise RuntimeError(f"{name}: {self.error.text.decode()}")

    def launch(self, name: str, operands: ctypes.Structure):
        """Launches a kernel on the current stream."""
        self.call(name, self.handle, self.stream, ctypes.byref(operands))

    def workspace(self, name: str, *arguments) -> torch.Tensor:
        """Returns the workspace of a kernel, of the size that the C interface states."""
        elements = U64()
        self.call(f"{name}_workspace_len", *arguments, ctypes.byref(elements))
        return self.zeros(elements.value, torch.float32)

    @property
    def stream(self) -> ctypes.c_void_p:
        return POINTER(torch.cuda.current_stream().cuda_stream if self.device == "cuda" else None)

    def bytes(self, kind: tuple[int, int], count: int) -> torch.Tensor:
        """Returns zeroed memory for `count` of the kernels' structs of kind `kind`."""
        return torch.zeros(count * kind[1], dtype=torch.uint8, device=self.device)

    def zeros(self, count: int, dtype) -> torch.Tensor:
        return torch.zeros(count, dtype=dtype, device=self.device)

    def attention(self, shape, qkv, k, v, page_ids, out):
        """Returns a function that launches joint attention over the given tensors; `page_ids` is [batch, pages each]."""
        ids = page_ids.to(torch.int32).cpu().contiguous()
        batch, each = ids.shape
        sequence = [sized(Sequence, pages=ids.data_ptr() + 4 * each * i, page_count=each, start=shape.context,
                          candidates=shape.candidates, groups=(1 << shape.groups) - 1, slots=shape.slots)
                    for i in range(batch)]
        sequences = (Sequence * batch)(*sequence)
        rows = sized(PassRows, sequences=ctypes.addressof(sequences), sequence_count=batch,
                     sequence_stride=ctypes.sizeof(Sequence), pages=k.shape[0], page_size=shape.page_size)
        tables = POINTER()
        self.call("pass_open", self.handle, self.stream, U64(batch), U64(each), ctypes.byref(tables))
        self.call("pass_upload", self.handle, self.stream, tables, ctypes.byref(rows))
        heads = Heads(shape.q_heads, shape.kv_heads, shape.head_dim)
        size = sized(AttentionSize, pass_=tables, heads=heads, rows=qkv.shape[0], with_masks=1)
        workspace = self.workspace("attention", self.handle, ctypes.byref(size))
        token = shape.kv_heads * shape.head_dim
        strides = (shape.page_size * token, token, shape.head_dim)
        operands = sized(JointAttention, pass_=tables, heads=heads, qkv=operand(qkv),
                         cache=Cache(operand(k), operand(v), *strides, *strides), out=operand(out),
                         workspace=operand(workspace), with_masks=1)
        kept = (workspace, qkv, k, v, out)

        def launch():
            # The launch must use the stream that the pass's tables were made on, or the call fails.
            assert kept
            self.launch("joint_attention", operands)
            return out

        launch.free = lambda: self.library.flexdraft_pass_close(tables)
        return launch

    def row_sampling(self, rows: int, temperature=1.0, top_k=0, top_p=1.0) -> torch.Tensor:
        host = torch.zeros(rows * SAMPLING[1], dtype=torch.uint8)
        for row in range(rows):
            params = sized(SamplingParams, temperature=temperature, top_p=top_p, purpose=TARGET_DRAW, top_k=top_k, seed=9,
                           slot=row, position=100)
            self.call("row_sampling", ctypes.byref(params), POINTER(host.data_ptr() + row * SAMPLING[1]))
        return host.to(self.device)

    def sample(self, logits, vocab: int, sampling, calibrator=None):
        """Returns a function that samples `logits` [rows, stride], and the memory to which it writes the rows'
        statistics."""
        rows, stride = logits.shape
        hidden, weight, bias = calibrator or (None, None, None)
        calibrated = calibrator is not None
        workspace = self.workspace("sample", U64(rows), U64(vocab), U32(calibrated))
        stats = self.bytes(STATS, rows)
        operands = sized(Sample, vocab=vocab, stride=stride, logits=operand(logits), sampling=operand(sampling, SAMPLING),
                         rank=hidden.shape[1] if calibrated else 0, hidden=operand(hidden), weight=operand(weight),
                         bias=operand(bias), workspace=operand(workspace), stats=operand(stats, STATS),
                         update=int(calibrated))
        kept = (logits, sampling, calibrator, workspace)

        def launch():
            assert kept
            self.launch("sample", operands)
            return stats

        return launch, stats

    def accept(self, rule: str, drafts: int, vocab: int, tokens, target, target_stats, draft, draft_stats):
        """Returns a function that verifies a batch of drafts, and the tensors of verdicts and committed tokens."""
        batch, stride = tokens.shape[0], target.shape[1]
        host = torch.zeros(batch * VERIFY[1], dtype=torch.uint8)
        number = ["match", "rejection", "block"].index(rule)
        for i in range(batch):
            sequence = sized(VerifySequence, seed=9 + i, position=100, drafts=drafts, first_target=i * (drafts + 1),
                             first_draft=i * drafts, first_draft_stats=i * drafts, first_token=i * drafts,
                             groups=(1 << (drafts + 1)) - 1, rule=number, draft=DRAFT_LOGITS)
            self.call("verify", ctypes.byref(sequence), POINTER(host.data_ptr() + i * VERIFY[1]))
        sequences = host.to(self.device)
        workspace = self.workspace("accept", U64(batch), U64(vocab))
        arrived = self.zeros(batch, torch.int32)
        verdicts, committed = self.bytes(VERDICT, batch), self.zeros(batch * COMMITTED, torch.int32)
        operands = sized(Accept, vocab=vocab, stride=stride, sequences=operand(sequences, VERIFY), tokens=operand(tokens),
                         target=operand(target), target_stats=operand(target_stats, STATS), draft=operand(draft),
                         draft_stats=operand(draft_stats, STATS), workspace=operand(workspace),
                         arrived=operand(arrived, dtype=4), verdicts=operand(verdicts, VERDICT),
                         committed=operand(committed), any_block=int(rule == "block"))
        kept = (sequences, tokens, target, target_stats, draft, draft_stats, workspace, arrived)

        def launch():
            assert kept
            self.launch("accept", operands)
            return committed

        return launch, verdicts.view(torch.int32).view(batch, -1), committed.view(batch, COMMITTED)


def statistics(stats: torch.Tensor) -> dict[str, torch.Tensor]:
    """Returns the fields of `FlexdraftRowStats` (cuda/sampling/params.h), each as a tensor."""
    words = stats.view(torch.int32).view(-1, 12)
    floats = stats.view(torch.float32).view(-1, 12)
    return {"token": words[:, 0], "log_sum": floats[:, 2], "probability": floats[:, 3], "confidence": floats[:, 4],
            "kept": words[:, 10]}
