#!/usr/bin/env python3
"""Tests of .ci/structure.py on small trees: the script finds circles and repeated names, and reports nothing else."""

import tempfile
import unittest
from pathlib import Path

from structure import Module, circles, imports, repeated_types


class Structure(unittest.TestCase):
    def tree(self, **files):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        for name, text in files.items():
            (Path(folder.name) / f"{name}.rs").write_text(text)
        return Module(Path(folder.name) / "lib.rs", None).load_children()

    def circle(self, **files):
        return [[file.stem for file in part] for part in circles(imports(self.tree(**files)))]

    def test_two_files_that_import_each_other(self):
        lib = "mod a; mod b;".replace(" mod", "\nmod")
        self.assertEqual(self.circle(lib=lib, a="use super::b::B;", b="use crate::a::{self, A};"), [["a", "b"]])
        self.assertEqual(self.circle(lib=lib, a="fn f() { crate::b::g(); }", b="fn g() { super::a::f(); }"), [["a", "b"]])
        self.assertEqual(self.circle(lib=lib, a="use super::b::B;", b="struct B;"), [])

    def test_a_circle_through_a_reexport(self):
        lib = "mod a;\nmod b;\npub use b::B;"
        self.assertEqual(self.circle(lib=lib, a="use crate::B;", b="use super::a::A;"), [["a", "b"]])

    def test_tests_comments_strings_and_inline_modules_do_not_count(self):
        lib = "mod a;\nmod b;"
        b = """
            // use super::a::A;
            const S: &str = "use super::a::A;";
            mod inline { use super::Own; }
            #[cfg(test)]
            mod tests { use super::super::a::A; }
        """
        self.assertEqual(self.circle(lib=lib, a="use super::b::B;", b=b), [])

    def test_a_call_through_a_child_module(self):
        self.assertEqual(self.circle(lib="mod a;\nfn f() { a::g(); }", a="use super::f;"), [["a", "lib"]])

    def test_repeated_types(self):
        root = self.tree(lib="mod a;\nmod b;\nstruct One;", a="pub struct Two<T>(T);", b="pub(crate) enum Two { One }")
        self.assertEqual({name: len(files) for name, files in repeated_types(root).items()}, {"Two": 2})


if __name__ == "__main__":
    unittest.main()
