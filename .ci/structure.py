#!/usr/bin/env python3
"""Checks the structure of the Rust sources: no import circle between files, no type name twice in src.

An import is a path in a `use` item, or a path that begins with `crate::` or `super::` anywhere else, or a
path through a child module's name. A file imports the file that defines the name: re-exports (`pub use`) are followed,
and are no imports themselves. Code under `#[cfg(test)]` is left out.

    .ci/structure.py [--graph]      exit status 1 with every circle and every repeated name; --graph prints all imports
"""

import re
import sys
from collections import defaultdict
from pathlib import Path

CRATES = ["src/lib.rs", "cli/src/main.rs", "tune/src/lib.rs", "reference/src/lib.rs", "cuda/stand_in/src/lib.rs", "replay/src/lib.rs",
          "ffi/src/lib.rs", "candle/src/lib.rs"]
UNIQUE_TYPES = "src"


def without_comments_and_strings(text):
    """Returns the code without comments, and with the contents of string and character literals blanked."""
    token = re.compile(
        r'//[^\n]*|/\*.*?\*/|(?<![A-Za-z0-9_])b?r(#*)".*?"\1|b?"(?:\\.|[^"\\])*"|\'(?:\\.[^\']*|[^\'\\])\'', re.S
    )
    return token.sub(lambda found: "" if found[0].startswith("/") else '""', text)


def closing_brace(text, start):
    """Returns the index after the closing brace that belongs to the opening brace at `start`."""
    depth = 0
    for index in range(start, len(text)):
        depth += (text[index] == "{") - (text[index] == "}")
        if depth == 0:
            return index + 1
    return len(text)


def without_tests(text):
    """Returns the code without modules and items under `#[cfg(test)]`."""
    while found := re.search(r"#\[cfg\(test\)\]\s*(?:#\[[^\]]*\]\s*)*", text):
        rest = text[found.end() :]
        brace, semicolon = rest.find("{"), rest.find(";")
        if brace == -1 or (semicolon != -1 and semicolon < brace):
            end = found.end() + semicolon + 1 if semicolon != -1 else len(text)
        else:
            end = closing_brace(text, found.end() + brace)
        text = text[: found.start()] + text[end:]
    return text


def without_inline_modules(text):
    """Returns the code with inline modules replaced by their contents, in which `super::` becomes `self::`: the file
    itself."""
    while found := re.search(r"^[ \t]*(?:pub(?:\([^)]*\))?\s+)?mod\s+\w+\s*\{", text, re.M):
        end = closing_brace(text, found.end() - 1)
        body = re.sub(r"\bsuper::(?!super)", "self::", text[found.end() : end - 1])
        text = text[: found.start()] + body.replace("super::self::", "super::") + text[end:]
    return text


def leaves(tree):
    """Yields every path of a use tree, with the name that it gets."""
    tree = tree.strip()
    brace = tree.find("{")
    if brace == -1:
        path, _, name = tree.partition(" as ")
        segments = [segment.strip().removeprefix("r#") for segment in path.split("::")]
        if segments[-1] == "self" and len(segments) > 1:
            segments.pop()
        yield segments, name.strip() or segments[-1]
        return
    prefix = [segment for segment in tree[:brace].strip().rstrip(":").split("::") if segment]
    depth, begin, inner = 0, 0, tree[brace + 1 : closing_brace(tree, brace) - 1]
    for index, letter in enumerate(inner + ","):
        depth += (letter == "{") - (letter == "}")
        if letter == "," and depth == 0:
            if inner[begin:index].strip():
                for segments, name in leaves(inner[begin:index]):
                    yield prefix + segments if segments != ["self"] else prefix, name if name != "self" else prefix[-1]
            begin = index + 1


class Module:
    def __init__(self, file, parent):
        self.file, self.parent, self.children = file, parent, {}
        self.code = without_inline_modules(without_tests(without_comments_and_strings(file.read_text())))
        self.uses, self.reexports, self.globs = [], {}, []
        for visibility, tree in re.findall(r"^[ \t]*(pub(?:\([^)]*\))?\s+)?use\s+([^;]+);", self.code, re.M):
            for segments, name in leaves(tree):
                if not visibility:
                    self.uses.append(segments)
                elif name == "*":
                    self.globs.append(segments[:-1])
                else:
                    self.reexports[name] = segments
        body = re.sub(r"^[ \t]*(?:pub(?:\([^)]*\))?\s+)?use\s+[^;]+;", "", self.code, flags=re.M)
        self.body = re.sub(r"pub\(in [^)]*\)", "", body)
        for path in re.findall(r"\b((?:crate|super)(?:::\w+)+)", self.body):
            self.uses.append(path.split("::"))

    def load_children(self):
        folder = self.file.parent
        if self.file.name not in ("mod.rs", "lib.rs", "main.rs"):
            folder = folder / self.file.stem
        for name in re.findall(r"^[ \t]*(?:pub(?:\([^)]*\))?\s+)?mod\s+(\w+)\s*;", self.code, re.M):
            for file in (folder / f"{name}.rs", folder / name / "mod.rs"):
                if file.exists():
                    self.children[name] = Module(file, self)
                    self.children[name].load_children()
        # A path through a child module's name is also an import, although it needs no `use`.
        for path in re.findall(r"(?<![\w:.])(\w+(?:::\w+)+)", self.body):
            if path.split("::")[0] in self.children:
                self.uses.append(path.split("::"))
        return self

    def all(self):
        yield self
        for child in self.children.values():
            yield from child.all()

    def root(self):
        return self.parent.root() if self.parent else self

    def resolve(self, segments, depth=0):
        """Returns the module whose file defines a path, or None for another crate's path."""
        if depth > 20:
            return None
        first, rest = segments[0], segments[1:]
        if first == "crate":
            module = self.root()
        elif first == "self":
            module = self
        elif first == "super":
            module = self.parent
        elif first in self.children:
            module = self.children[first]
        elif first in self.reexports and self.reexports[first] != segments:
            return self.resolve(self.reexports[first] + rest, depth + 1)
        else:
            return None
        while module and rest:
            name = rest[0]
            if name in module.children:
                module, rest = module.children[name], rest[1:]
            elif name == "super":
                module, rest = module.parent, rest[1:]
            elif name in module.reexports:
                return module.resolve(module.reexports[name] + rest[1:], depth + 1)
            else:
                for path in module.globs:
                    found = module.resolve(path + rest, depth + 1)
                    if found and re.search(rf"\b(struct|enum|trait|fn|const|type|static)\s+{name}\b", found.code):
                        return found
                break
        return module


def imports(root):
    graph = defaultdict(set)
    for module in root.all():
        for segments in module.uses:
            target = module.resolve(segments)
            if target and target is not module:
                graph[module.file].add(target.file)
    return graph


def circles(graph):
    """Returns the circles of the import graph: its strongly connected components of more than one file."""
    order, low, stack, found = {}, {}, [], []

    def visit(node):
        order[node] = low[node] = len(order)
        stack.append(node)
        for target in sorted(graph.get(node, ())):
            if target not in order:
                visit(target)
            if target in stack:
                low[node] = min(low[node], low[target])
        if low[node] == order[node]:
            part = []
            while not part or part[-1] != node:
                part.append(stack.pop())
            if len(part) > 1:
                found.append(sorted(part))

    sys.setrecursionlimit(10000)
    for node in sorted(graph):
        if node not in order:
            visit(node)
    return found


def repeated_types(root):
    places = defaultdict(list)
    for module in root.all():
        pattern = r"^[ \t]*(?:pub(?:\([^)]*\))?\s+)?(?:unsafe\s+)?(?:struct|enum|trait|union)\s+(\w+)"
        for name in re.findall(pattern, module.code, re.M):
            places[name].append(module.file)
        for name in re.findall(r"^(?:pub(?:\([^)]*\))?\s+)?type\s+(\w+)", module.code, re.M):
            places[name].append(module.file)
    return {name: files for name, files in sorted(places.items()) if len(files) > 1}


def main():
    top = Path(__file__).resolve().parent.parent
    failed = False
    for crate in CRATES:
        root = Module(top / crate, None).load_children()
        graph = imports(root)
        if "--graph" in sys.argv:
            for file in sorted(graph):
                print(file.relative_to(top), "->", *sorted(str(target.relative_to(top)) for target in graph[file]))
        for part in circles(graph):
            failed = True
            print(f"circle of {len(part)} files:")
            for file in part:
                targets = sorted(str(target.relative_to(top)) for target in graph[file] if target in part)
                print(f"  {file.relative_to(top)} imports {', '.join(targets)}")
        if crate.split("/")[0] == UNIQUE_TYPES:
            for name, files in repeated_types(root).items():
                failed = True
                print(f"type {name} is defined more than once: {', '.join(str(f.relative_to(top)) for f in files)}")
    return failed


if __name__ == "__main__":
    sys.exit(main())
