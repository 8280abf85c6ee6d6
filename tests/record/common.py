"""The directory of recordings, and functions that write numbers into them."""

import json
import pathlib

TESTS = pathlib.Path(__file__).resolve().parents[1]
OUT = TESTS / "fixtures" / "transformers"
TINY = TESTS / "fixtures" / "tiny"


def f32(x):
    """Returns the shortest decimal that reads back as the same f32, as a float."""
    import numpy

    return float(str(numpy.float32(x)))


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False) + "\n")


def write_rows(path, head, name, rows):
    """Writes an object with one long list, with one row of the list per line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fields = "".join(f"{json.dumps(k)}: {json.dumps(v, ensure_ascii=False)},\n" for k, v in head.items())
    body = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    path.write_text("{" + fields + json.dumps(name) + ": [\n" + body + "\n]}\n")
