"""Prints the held-out functions' doc comments as prompts, each once: unseen.py HELDOUT_FOLDER > unseen.jsonl"""

import json
import pathlib
import re
import sys

DOC = re.compile(r"(?:///[^\n]*\n)+")

prompts = {}
for path in sorted(pathlib.Path(sys.argv[1]).glob("*.txt")):
    for function in re.split(r"(?<=\n}\n)\n(?=///)", path.read_text(encoding="utf-8")):
        prompts[DOC.match(function).group()] = None
for prompt in prompts:
    print(json.dumps({"prompt": prompt}))
