"""Records SmolLM2-135M-Instruct in transformers: greedy tokens with margins, token ids of texts, and rendered chats.

`demo/smollm2.sh` downloads the GGUF file. transformers reads the weights from it, and they are rounded to bf16. All
computations are in f32 with eager attention.
"""

import json
import sys

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from common import TESTS
from gguf_files import MORE_TEXTS
from tokenizer import TEXTS

DIR = TESTS.parent / "demo" / "models"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
NEW_TOKENS = 96

CHATS = [
    [("user", "What is the capital of France?")],
    [("user", "Write a haiku about the sea.")],
    [("user", "Explain in three sentences why the sky is blue.")],
    [("system", "You answer like a pirate."), ("user", "How do I bake bread?")],
    [("user", "What is 17 + 25?"), ("assistant", "17 + 25 = 42."), ("user", "And twice that?")],
    [("user", "Write a Python function that reverses a list, with a docstring.")],
]
PLAIN = [
    "The three laws of motion are",
    "Once upon a time, in a small village by the river,",
    "def fibonacci(n):\n    ",
    "1, 1, 2, 3, 5, 8, 13,",
]
TEMPLATED_TEXTS = ["  two  spaces 12 ", "é😀\t<|im_end|>\nuser text", "日本語 1234"]


def tokenizer(spoken):
    """Returns a tokenizer with the pre-tokenizer of the model's own tokenizer.json: it splits off each digit, and
    splits the rest like GPT-2.

    For a `llama` GGUF file, transformers leaves the digits to GPT-2's split, which joins them with the space before.
    """
    parameters = load_gguf_checkpoint(str(DIR / FILE))["tokenizer"]
    tokens, types = parameters["tokens"], parameters["token_type"]
    vocab = {token: i for i, token in enumerate(tokens)}
    inner = Tokenizer(models.BPE(vocab, [tuple(merge.split(" ")) for merge in parameters["merges"]]))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    inner.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(t, normalized=False, special=True) for t, k in zip(tokens, types) if k == 3])
    fast = PreTrainedTokenizerFast(tokenizer_object=inner, clean_up_tokenization_spaces=False)
    fast.chat_template = spoken.chat_template
    return fast


def continue_greedily(model, ids):
    tokens, margins = [], []
    cache, fed = None, torch.tensor([ids])
    with torch.no_grad():
        for _ in range(NEW_TOKENS):
            out = model(fed, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            top = out.logits[0, -1].topk(2)
            tokens.append(top.indices[0].item())
            margins.append(round((top.values[0] - top.values[1]).item(), 4))
            fed = top.indices[:1].unsqueeze(0)
    return tokens, margins


def main():
    spoken = AutoTokenizer.from_pretrained(DIR, gguf_file=FILE)
    own = tokenizer(spoken)
    texts = TEXTS + MORE_TEXTS + [text for chat in CHATS for _, text in chat] + PLAIN
    encoded = []
    for text in texts:
        ids = own.encode(text, add_special_tokens=False)
        if spoken.encode(text, add_special_tokens=False) != ids:
            assert any(c.isnumeric() for c in text), f"transformers' own reading differs: {text!r}"
            print(f"transformers' own reading splits digits differently: {text!r}", file=sys.stderr)
        encoded.append(dict(text=text, ids=ids, decoded=own.decode(ids), decoded_without_special=own.decode(ids, skip_special_tokens=True)))

    model = AutoModelForCausalLM.from_pretrained(DIR, gguf_file=FILE, dtype=torch.float32, attn_implementation="eager").eval()
    for name, parameter in model.named_parameters():
        rounded = parameter.data.to(torch.bfloat16).float()
        # Norms are f32 in the file and are used as stored, so rounding must not change them.
        assert not name.endswith("norm.weight") or torch.equal(rounded, parameter.data), name
        parameter.data = rounded
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()

    prompts, chats = [], []
    for chat in CHATS + [[("user", text)] for text in TEMPLATED_TEXTS]:
        messages = [dict(role=role, content=content) for role, content in chat]
        rendered = own.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        chats.append(dict(messages=messages, rendered=rendered, ids=own.encode(rendered, add_special_tokens=False)))
    for text in [chat["rendered"] for chat in chats[: len(CHATS)]] + PLAIN:
        ids = own.encode(text, add_special_tokens=False)
        tokens, margins = continue_greedily(model, ids)
        prompts.append(dict(text=text, ids=ids, tokens=tokens, margins=margins))
        print(f"{min(margins):.4f} {own.decode(tokens)!r}", file=sys.stderr)
    lists = dict(texts=encoded, chats=chats, prompts=prompts)
    rows = ",\n".join(
        json.dumps(name) + ": [\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in value) + "\n]" for name, value in lists.items()
    )
    (TESTS / "fixtures" / "smollm2.json").write_text("{" + rows + "}\n")


if __name__ == "__main__":
    main()
