#!/usr/bin/env python3
"""Quantises a GGUF file in bf16 with llama.cpp, for comparisons over formats.

usage: quantize.py FROM.gguf TO.gguf Q8_0|Q4_0|Q4_K_M|...
"""

import sys

import llama_cpp


def main():
    if len(sys.argv) != 4:
        raise SystemExit(__doc__)
    source, target, name = sys.argv[1:]
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{name}")
    if llama_cpp.llama_model_quantize(source.encode(), target.encode(), parameters) != 0:
        raise SystemExit(f"llama.cpp cannot quantise {source} to {name}")


if __name__ == "__main__":
    main()
