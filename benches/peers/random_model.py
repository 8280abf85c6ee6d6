#!/usr/bin/env python3
"""Writes a GGUF file in bf16 of a Qwen3 model with random weights, for measurements of speed alone.

usage: random_model.py TOKENIZER.gguf TO.gguf [--layers N]

The model has the shape of Qwen3-0.6B, but for the vocabulary, which is the one of the GGUF file TOKENIZER with its tokenizer. All
rows are divisible by 256, so llama.cpp quantises every matrix to the formats of a recipe such as Q4_K_M (quantize.py) and replaces
none. The time of a product does not depend on the values of weights. Rounding may change which token a random model finds
likeliest, so the tokens of two programs are no check of them.
"""

import argparse

import gguf
import numpy as np

HIDDEN = 1024
FFN = 3072
HEADS, KV_HEADS, HEAD_DIM = 16, 8, 128
LAYERS = 28


def copy_tokenizer(reader, writer):
    """Copies the tokenizer, and returns its number of tokens."""
    for field in reader.fields.values():
        if field.name.startswith("tokenizer."):
            kind, *items = field.types
            writer.add_key_value(field.name, field.contents(), kind, sub_type=items[-1] if items else None)
    return len(reader.get_field("tokenizer.ggml.tokens").data)


def matrices(vocabulary, layers):
    """Returns the name and the shape `[outputs, inputs]` of every matrix."""
    shapes = {"token_embd": (vocabulary, HIDDEN)}
    for layer in range(layers):
        for name, shape in {
            "attn_q": (HEADS * HEAD_DIM, HIDDEN),
            "attn_k": (KV_HEADS * HEAD_DIM, HIDDEN),
            "attn_v": (KV_HEADS * HEAD_DIM, HIDDEN),
            "attn_output": (HIDDEN, HEADS * HEAD_DIM),
            "ffn_gate": (FFN, HIDDEN),
            "ffn_up": (FFN, HIDDEN),
            "ffn_down": (HIDDEN, FFN),
        }.items():
            shapes[f"blk.{layer}.{name}"] = shape
    return shapes


def norms(layers):
    """Returns the name and the length of every weight of an RMSNorm."""
    lengths = {"output_norm": HIDDEN}
    for layer in range(layers):
        for name, length in {
            "attn_norm": HIDDEN,
            "attn_q_norm": HEAD_DIM,
            "attn_k_norm": HEAD_DIM,
            "ffn_norm": HIDDEN,
        }.items():
            lengths[f"blk.{layer}.{name}"] = length
    return lengths


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer")
    parser.add_argument("target")
    parser.add_argument("--layers", type=int, default=LAYERS)
    args = parser.parse_args()

    writer = gguf.GGUFWriter(args.target, "qwen3")
    writer.add_name(f"Random weights, Qwen3-0.6B's shape with {args.layers} layers")
    writer.add_block_count(args.layers)
    writer.add_context_length(4096)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_key_length(HEAD_DIM)
    writer.add_value_length(HEAD_DIM)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e6)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    vocabulary = copy_tokenizer(gguf.GGUFReader(args.tokenizer), writer)

    random = np.random.default_rng(1)
    bf16 = gguf.GGMLQuantizationType.BF16
    for name, (outputs, inputs) in matrices(vocabulary, args.layers).items():
        values = random.standard_normal((outputs, inputs), dtype=np.float32) * np.float32(inputs**-0.5)
        writer.add_tensor(f"{name}.weight", gguf.quants.quantize(values, bf16), raw_dtype=bf16)
    for name, length in norms(args.layers).items():
        writer.add_tensor(f"{name}.weight", np.ones(length, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
