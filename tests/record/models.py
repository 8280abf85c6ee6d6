"""Records tiny random models of every supported kind, and the logits that transformers computes for them."""

import json
import shutil
import sys

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

from common import OUT, f32, write_rows

SHAPE = dict(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=None,
)
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16)
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=16)
# This YaRN config has all optional keys; with this beta_fast the ramp is within a head.
YARN_FULL = dict(
    YARN, factor=8.0, beta_fast=2.0, beta_slow=0.25, mscale=0.7, mscale_all_dim=1.3, truncate=False
)


def randomize(model, seed):
    """Sets weights that affect the logits: non-uniform attention, and biases and norms other than the defaults."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        with torch.no_grad():
            if name.endswith("norm.weight"):
                parameter.copy_(1 + 0.2 * noise)
            elif name.endswith("bias"):
                parameter.copy_(0.3 * noise)
            else:
                parameter.copy_(1.5 * noise / parameter.shape[-1] ** 0.5)


def record(name, kind, dtype, seed, *arguments, **options):
    """Records a model, if the command line names it or names none."""
    if name in sys.argv[1:] or not sys.argv[1:]:
        write_model(name, kind, dtype, seed, *arguments, **options)


def write_model(name, kind, dtype, seed, shards=None, rope_parameters=False, generation_eos=None, **options):
    config_class, model_class = {
        "llama": (LlamaConfig, LlamaForCausalLM),
        "mistral": (MistralConfig, MistralForCausalLM),
        "qwen2": (Qwen2Config, Qwen2ForCausalLM),
        "qwen3": (Qwen3Config, Qwen3ForCausalLM),
        "smollm3": (SmolLM3Config, SmolLM3ForCausalLM),
    }[kind]
    config = config_class(**{**SHAPE, **options}, attn_implementation="eager")
    model = model_class(config).eval()
    randomize(model, seed)
    # Only the parameters are converted, because `model.to` would also round the rotary frequencies.
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)

    path = OUT / "models" / name
    shutil.rmtree(path, ignore_errors=True)
    model.save_pretrained(path, **({"max_shard_size": shards} if shards else {}))
    if generation_eos is None:
        (path / "generation_config.json").unlink()
    else:
        generation = json.loads((path / "generation_config.json").read_text())
        generation["eos_token_id"] = generation_eos
        (path / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    if rope_parameters:
        # The config is written as transformers 5 writes it.
        saved = json.loads((path / "config.json").read_text())
        saved["rope_parameters"] = {"rope_theta": saved.pop("rope_theta"), **saved.pop("rope_scaling")}
        saved["transformers_version"] = "5.0.0"
        (path / "config.json").write_text(json.dumps(saved, indent=2) + "\n")

    generator = torch.Generator().manual_seed(1000 + seed)
    prompt = torch.randint(0, SHAPE["vocab_size"], (1, 24), generator=generator)
    for parameter in model.parameters():
        parameter.data = parameter.data.float()
    assert torch.equal(model.model.rotary_emb.inv_freq, model.model.rotary_emb.original_inv_freq)
    with torch.no_grad():
        logits = model(prompt).logits[0]
        exact = model.double()(prompt).logits[0]
    rotary = model.model.rotary_emb
    difference = (logits.double() - exact).abs().max().item()
    top = exact.topk(2).values
    head = {
        "prompt": prompt[0].tolist(),
        "inv_freq": [f32(x) for x in rotary.original_inv_freq.float()],
        "rope_scale": f32(rotary.attention_scaling),
        "f64_difference": difference,
    }
    write_rows(path / "recording.json", head, "logits", [[f32(x) for x in row] for row in logits])
    margin = (top[:, 0] - top[:, 1]).min().item()
    print(f"{name}: std {exact.std():.2f}, f32 - f64 {difference:.1e}, smallest margin {margin:.1e}")


if __name__ == "__main__":
    f32_, f16, bf16 = torch.float32, torch.float16, torch.bfloat16
    record("llama", "llama", f32_, 1, tie_word_embeddings=True)
    record("llama-linear", "llama", bf16, 2, rope_scaling=dict(rope_type="linear", factor=4.0), generation_eos=[2, 5])
    record("llama-llama3", "llama", f16, 3, rope_scaling=LLAMA3, rope_theta=500000.0, head_dim=16, shards="40KB")
    record("llama-yarn", "llama", bf16, 4, rope_scaling=YARN, head_dim=16, generation_eos=7)
    record("llama-biases", "llama", f32_, 5, attention_bias=True, mlp_bias=True)
    record("qwen3", "qwen3", f32_, 6, head_dim=16, tie_word_embeddings=True, rope_theta=1000000.0)
    record("qwen3-biases", "qwen3", bf16, 7, head_dim=16, attention_bias=True)
    record("qwen3-yarn-v5", "qwen3", f16, 8, head_dim=32, rope_scaling=YARN_FULL, rope_parameters=True)
    record("mistral", "mistral", bf16, 9, sliding_window=128, rope_theta=1000000.0, head_dim=16)
    record("qwen2", "qwen2", f32_, 10, tie_word_embeddings=True, rope_theta=1000000.0)
    # In SmolLM3, the last of every four layers has no rotary embedding.
    record("smollm3", "smollm3", f16, 11, num_hidden_layers=5)
