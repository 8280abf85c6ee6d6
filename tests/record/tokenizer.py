"""Records token ids of difficult texts, for the fixture's byte-level tokenizer and a Llama-2-like one with byte
fallback."""

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
from transformers import PreTrainedTokenizerFast

from common import OUT, TINY, write

TEXTS = [
    "",
    " ",
    "   leading and trailing   ",
    "def f(x):\n    return x + 1\n",
    "\t\ttabs\tand\r\nWindows\n\n\nlines",
    "digits 0 12 345 6789 3.14159 1e-10 1_000_000",
    "don't you'll WE'RE it'S",
    "naïve café ångström Straße",
    "Ελληνικά Русский עברית العربية हिन्दी ไทย",
    "日本語と中文と한국어",
    "emoji 😀 👩‍👩‍👧‍👦 🇩🇪 ☕️",
    "zero\u200bwidth and non\u00a0breaking and \u2028 separators",
    "combining e\u0301 and precomposed \u00e9",
    "<|endoftext|>",
    "a<|endoftext|>b <|MASK|><|MASK|> <|endof text|>",
    "<s>not</s> <0x41> special here",
    "\u0000\u0001 controls \u007f\u0080",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 \U0010ffff \ufffd",
    "a" * 50 + " " * 20 + "!" * 10,
]


def byte_fallback_tokenizer():
    words = ["▁", "a", "b", "d", "e", "f", "i", "l", "n", "r", "t", "▁t", "▁a", "er", "in", "▁in", "re", "▁re"]
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2}
    vocab.update({f"<0x{byte:02X}>": 3 + byte for byte in range(256)})
    vocab.update({word: len(vocab) + i for i, word in enumerate(words)})
    merges = [("▁", "t"), ("▁", "a"), ("e", "r"), ("i", "n"), ("▁", "in"), ("r", "e"), ("▁", "re")]
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in ("<unk>", "<s>", "</s>")])
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    # The recorded tokenizer has length limits, which transformers applies only on request.
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=4)
    path = OUT / "tokenizers" / "byte-fallback" / "tokenizer.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path))
    return path


def record(tokenizer_file, name):
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer_file), clean_up_tokenization_spaces=False)
    cases = []
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=True)
        cases.append(
            dict(
                text=text,
                ids=tokenizer.encode(text, add_special_tokens=False),
                ids_with_special=ids,
                decoded=tokenizer.decode(ids, skip_special_tokens=False),
                decoded_without_special=tokenizer.decode(ids, skip_special_tokens=True),
            )
        )
    write(OUT / "tokenizers" / f"{name}.json", cases)


if __name__ == "__main__":
    record(TINY / "target" / "tokenizer.json", "tiny")
    record(byte_fallback_tokenizer(), "byte-fallback")
