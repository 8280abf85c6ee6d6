"""Writes small GGUF files with ggml's own Python package: block formats, models, tokenizers."""

import json
from types import SimpleNamespace

import gguf
import numpy
import torch
from gguf import GGMLQuantizationType as Type
from safetensors import safe_open
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig
from transformers.convert_slow_tokenizer import GPT2Converter, Qwen2Converter, TikTokenConverter

from common import OUT, TESTS, write
from tokenizer import TEXTS

GGUF = TESTS / "fixtures" / "gguf"
# The block types in each file of quantised blocks, by the file's name.
QUANTIZATIONS = {
    "blocks": [Type.Q4_0, Type.Q4_1, Type.Q8_0, Type.Q4_K, Type.Q6_K],
    "blocks-2": [Type.Q5_0, Type.Q5_1, Type.Q2_K, Type.Q3_K, Type.Q5_K, Type.IQ4_NL, Type.IQ4_XS],
}
# Offsets of the f16 scales in a block of each type, in units of two bytes.
SCALES = {
    Type.Q4_0: [0],
    Type.Q4_1: [0, 1],
    Type.Q5_0: [0],
    Type.Q5_1: [0, 1],
    Type.Q8_0: [0],
    Type.Q2_K: [40, 41],
    Type.Q3_K: [54],
    Type.Q4_K: [0, 1],
    Type.Q5_K: [0, 1],
    Type.Q6_K: [104],
    Type.IQ4_NL: [0],
    Type.IQ4_XS: [0],
}


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def new_writer(name, architecture):
    GGUF.mkdir(parents=True, exist_ok=True)
    return gguf.GGUFWriter(GGUF / f"{name}.gguf", architecture)


def to_bf16(x):
    """Returns bf16 rounded to nearest even, as the two stored bytes."""
    return torch.from_numpy(numpy.ascontiguousarray(x)).to(torch.bfloat16).view(torch.uint8).numpy()


def blocks(name):
    """Writes a file of random quantised blocks. Any bytes with finite scales are a block, so random bytes test every
    bit of a format."""
    random = numpy.random.default_rng(11)
    writer = new_writer(name, "llama")
    for kind in QUANTIZATIONS[name]:
        length, size = gguf.GGML_QUANT_SIZES[kind]
        rows, per_row = 4, 1024 // length
        raw = random.integers(0, 256, (rows, per_row, size), dtype=numpy.uint8)
        halves = raw.view(numpy.uint16)
        for index in SCALES[kind]:
            # The blocks' scales include both signs, zeros and subnormal numbers, but not infinity and NaN.
            scale = halves[..., index]
            scale[(scale & 0x7C00) == 0x7C00] &= 0xBFFF
        raw = raw.reshape(rows, -1)
        values = gguf.dequantize(raw, kind)
        assert numpy.isfinite(values).all() and values.shape == (rows, 1024)
        writer.add_tensor(kind.name, raw, raw_dtype=kind)
        writer.add_tensor(f"{kind.name}.expected", to_bf16(values), raw_dtype=Type.BF16)
    finish(writer)


def permute(weight, heads):
    """Permutes the rows of Llama's query and key projections as the conversion to GGUF does: rotated pairs become
    neighbours."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def model(source, name=None, quantize=None, alignment=None):
    """Converts a transformers directory to a GGUF file, with the package's own names of keys and tensors."""
    path = OUT / "models" / source
    config = AutoConfig.from_pretrained(path)
    # GGUF files store Mistral's models with the architecture `llama`.
    kind = {"mistral": "llama"}.get(config.model_type, config.model_type)
    permuted = kind in ("llama", "smollm3")
    writer = new_writer(name or source, kind)
    if alignment:
        writer.add_custom_alignment(alignment)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if head_dim * config.num_attention_heads != config.hidden_size:
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_eos_token_id(config.eos_token_id)
    writer.add_eot_token_id(5)
    scaling = getattr(config, "rope_scaling", None) or {}
    rope_type = scaling.get("rope_type", "default")
    if rope_type in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope_type))
        writer.add_rope_scaling_factor(scaling["factor"])
    if rope_type == "yarn":
        writer.add_rope_scaling_orig_ctx_len(scaling["original_max_position_embeddings"])
    if rope_type == "llama3":
        recorded = json.loads((path / "recording.json").read_text())["inv_freq"]
        plain = config.rope_theta ** -(numpy.arange(0, head_dim, 2) / head_dim)
        writer.add_tensor("rope_freqs.weight", (plain / numpy.array(recorded)).astype(numpy.float32))

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[kind.upper()], config.num_hidden_layers)
    for file in sorted(path.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for key in tensors.keys():
                tensor = tensors.get_tensor(key)
                if permuted and ".q_proj." in key:
                    tensor = permute(tensor, config.num_attention_heads)
                if permuted and ".k_proj." in key:
                    tensor = permute(tensor, config.num_key_value_heads)
                ggml_name = names.get_name(key, try_suffixes=(".weight", ".bias"))
                if quantize and tensor.dim() == 2 and tensor.shape[1] % 32 == 0:
                    kind_of = quantize[len(ggml_name) % len(quantize)]
                    writer.add_tensor(ggml_name, gguf.quantize(tensor.float().numpy(), kind_of), raw_dtype=kind_of)
                elif tensor.dtype == torch.bfloat16:
                    writer.add_tensor(ggml_name, tensor.contiguous().view(torch.uint8).numpy(), raw_dtype=Type.BF16)
                else:
                    writer.add_tensor(ggml_name, tensor.contiguous().numpy())
    finish(writer)


CORPUS = TEXTS + [
    "The quick brown fox jumps over 13 lazy dogs, and they'll do it again in 2024.",
    "  indented code:\n\tfor i in range(10):\n\t\tprint(i, 1000 + i)\n\n\n",
    "user: what's 12345678 + 90?\r\nassistant: it's 12345768!!! (isn't it?)",
    "the then there these those them they their thing think that's the reason",
] * 3

MORE_TEXTS = [
    "1234567 12 1 12,345.678  99   100\t5\n6",
    "x1y22z333 ²³ ½ Ⅷ ٣٤٥ 一二三",
    "I'M you'RE he'LL it's we'd  'tis 'S",
    "line\n\n  next\n \n\t\nend   \n",
    "a   b    \tc \t d\u3000e",
    "<|im_start|>user\nhi<|im_end|>\n<tool_call>{}</tool_call> <pad> unreachable unreachables",
    "e\u0301 \u1112\u1161\u11ab ﬁ Å \u212b",
]


def pipelines():
    """Returns the pre-tokenizer and normalizer of the models that a `tokenizer.ggml.pre` stands for."""
    gpt2 = GPT2Converter(SimpleNamespace(add_bos_token=False)).converted({"a": 0, "aa": 1}, [("a", "a")])
    qwen2 = Qwen2Converter(None).converted({"a": 0, "aa": 1}, [("a", "a")])
    llama3 = TikTokenConverter().pattern
    by_regex = pre_tokenizers.Split(Regex(llama3), "isolated")
    plain_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    digits = pre_tokenizers.Digits(individual_digits=True)
    return {
        "gpt-2": (gpt2.pre_tokenizer, None),
        "smollm": (pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)]), None),
        "llama-bpe": (pre_tokenizers.Sequence([by_regex, plain_bytes]), None),
        "qwen2": (qwen2.pre_tokenizer, qwen2.normalizer),
    }


def tokenizer(pre, pre_tokenizer, normalizer):
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizer
    if normalizer:
        trained.normalizer = normalizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trained.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=480, initial_alphabet=alphabet, show_progress=False))
    state = json.loads(trained.to_str())["model"]
    merges = [tuple(merge) for merge in state["merges"]]
    # The vocabulary has control tokens at its beginning and end, as in real models.
    control = ["<|endoftext|>", "<|im_start|>"]
    text = sorted(state["vocab"], key=state["vocab"].get)
    # No merges produce this token, so only `ignore_merges` matches it, as a whole piece.
    text.append("Ġunreachable")
    tokens = control + text + ["<|im_end|>", "<tool_call>", "</tool_call>", "<pad>"]
    types = [3] * len(control) + [1] * len(text) + [3, 4, 4, 5]

    # Ids of unused tokens are missing from the vocabulary, as from the `tokenizer.json` of a model with padded embeddings.
    vocab = {token: i for i, (token, kind) in enumerate(zip(tokens, types)) if kind != 5}
    reference = Tokenizer(models.BPE(vocab, merges, ignore_merges=pre == "llama-bpe"))
    reference.pre_tokenizer = pre_tokenizer
    if normalizer:
        reference.normalizer = normalizer
    reference.decoder = decoders.ByteLevel()
    reference.add_special_tokens([AddedToken(t, normalized=False, special=True) for t, k in zip(tokens, types) if k == 3])
    reference.add_tokens([AddedToken(t, normalized=False) for t, k in zip(tokens, types) if k == 4])
    bos = vocab["<|endoftext|>"]
    if pre == "llama-bpe":
        reference.post_processor = processors.TemplateProcessing(single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", bos)])

    writer = new_writer(f"tokenizer-{pre}", "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_bos_token_id(bos)
    writer.add_eos_token_id(vocab["<|im_end|>"])
    if pre != "llama-bpe":
        writer.add_add_bos_token(False)
    writer.add_chat_template("{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}")
    writer.add_tensor("token_embd.weight", numpy.zeros((len(tokens), 1), numpy.float16))
    finish(writer)

    cases = []
    for case in TEXTS + MORE_TEXTS:
        with_special = reference.encode(case, add_special_tokens=True).ids
        cases.append(
            dict(
                text=case,
                ids=reference.encode(case, add_special_tokens=False).ids,
                ids_with_special=with_special,
                decoded=reference.decode(with_special, skip_special_tokens=False),
                decoded_without_special=reference.decode(with_special, skip_special_tokens=True),
            )
        )
    return cases


if __name__ == "__main__":
    for name in QUANTIZATIONS:
        blocks(name)
    for name in ("llama", "llama-linear", "llama-llama3", "llama-yarn", "llama-biases", "qwen3", "mistral", "qwen2", "smollm3"):
        model(name)
    model("llama", "llama-quantized", quantize=[Type.Q8_0, Type.Q4_0, Type.Q4_1], alignment=128)
    recorded = {pre: tokenizer(pre, *pipeline) for pre, pipeline in pipelines().items()}
    write(GGUF / "tokenizers.json", recorded)
    for pre, cases in recorded.items():
        others = [other for other in recorded if other != pre]
        for other in others:
            assert [c["ids"] for c in cases] != [c["ids"] for c in recorded[other]]
