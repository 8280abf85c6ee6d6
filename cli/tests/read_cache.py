#!/usr/bin/env python3
"""Prints the files of a model that huggingface_hub finds, and their hashes; with HF_HUB_OFFLINE=1, in the cache alone.

    cli/tests/read_cache.py ID REVISION
"""

import hashlib
import sys
from pathlib import Path

from huggingface_hub import hf_hub_download, snapshot_download

repository, revision = sys.argv[1:]
folder = Path(snapshot_download(repository, revision=revision, ignore_patterns=["README.md"]))
for path in sorted(path for path in folder.rglob("*") if path.is_file()):
    name = path.relative_to(folder).as_posix()
    assert Path(hf_hub_download(repository, name, revision=revision)) == path
    print(name, hashlib.sha256(path.read_bytes()).hexdigest())
