"""The examples in docstrings: those with `>>>` print what they say; the others parse and name what exists."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import duet
from diffusion_core.common.errors import name_arguments

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = sorted(path.parent for path in ROOT.glob("*/__init__.py") if path.parent.name not in ("tests",))
FILES = sorted(file for package in PACKAGES for file in package.rglob("*.py"))


class Example(NamedTuple):
    """The code of an example that a docstring shows without `>>>`, and where it is."""

    place: str
    code: str


def module_name(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def with_sessions(folder: str = "") -> list[str]:
    """Return the modules below a folder whose text has an example with `>>>`."""
    return [
        module_name(file) for file in FILES if (ROOT / folder) in file.parents and ">>> " in file.read_text("utf-8")
    ]


def run_sessions(name: str) -> None:
    module = importlib.import_module(name)
    results = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert results.failed == 0 and results.attempted > 0


@pytest.mark.parametrize("name", [name for name in with_sessions() if not name.startswith("backends.")])
def test_the_examples_of_a_module_print_what_they_say(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # an example may write files
    if name.startswith("duet"):
        name_arguments()
    run_sessions(name)


@pytest.mark.backend
def test_the_examples_of_a_backend_print_what_they_say(backend_name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in with_sessions(f"backends/{backend_name}"):
        run_sessions(name)


def shown_code(docstring: str) -> Iterator[str]:
    """Return the indented blocks of the section `Example:` of a docstring that have no `>>>`."""
    section = re.search(r"^Example:\n((?:[ ]{4}.*\n|\s*\n)+)", inspect.cleandoc(docstring) + "\n", re.MULTILINE)
    text = textwrap.dedent(section[1]) if section else ""
    for block in re.findall(r"::\n\n((?:    .*\n|\s*\n)+)", text + "\n"):
        if ">>> " not in block:
            yield textwrap.dedent(block)


def examples() -> list[Example]:
    """Return the examples without `>>>` of every docstring of the project."""
    found = []
    for file in FILES:
        text = file.read_text("utf-8")
        for node in ast.walk(ast.parse(text)) if "Example:" in text else ():
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                name = f"{module_name(file)}.{getattr(node, 'name', '')}"
                found += [Example(name, code) for code in shown_code(ast.get_docstring(node, clean=False) or "")]
    return found


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """Return the calls of functions of duet, with their names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if re.fullmatch(r"duet\.\w+", name):
                yield name.removeprefix("duet."), node


def unknown_names(code: str) -> list[str]:
    """Return the names of duet, and the keywords of its functions, that a piece of code uses and that do not exist."""
    tree = ast.parse(code)
    wrong = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "duet":
            wrong += [] if node.attr in duet.__all__ else [f"duet.{node.attr}"]
    for name, call in calls(tree):
        value: Any = getattr(duet, name, None)
        if value is not None:
            parameters = inspect.signature(value).parameters
            if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
                wrong += [f"duet.{name}({k.arg}=)" for k in call.keywords if k.arg and k.arg not in parameters]
    return wrong


def test_an_example_without_a_session_parses_and_names_what_exists():
    found = examples()
    assert len(found) > 3
    for place, code in found:
        assert unknown_names(code) == [], place


def test_a_name_or_keyword_that_does_not_exist_is_noticed():
    assert unknown_names("duet.trian(x)\nduet.save_grid(p, x, column=3)") == ["duet.trian", "duet.save_grid(column=)"]
    (code,) = shown_code(
        "A.\n\n    Example:\n        A run::\n\n            duet.train(\n                m)\n\n        >>> 1\n"
    )
    assert code.strip() == "duet.train(\n    m)"


@pytest.mark.parametrize("page", sorted([ROOT / "README.md", *ROOT.glob("docs/**/*.md")]), ids=lambda page: page.stem)
def test_a_page_names_only_what_duet_has(page):
    """A name of `duet` in a text is public, a package of `duet`, or the group of its entry points."""
    names = set(re.findall(r"(?<![\w./-])duet\.([A-Za-z]\w*)\b(?!/)", page.read_text("utf-8")))
    packages = {path.name.removesuffix(".py") for path in (ROOT / "duet").iterdir()}
    assert names <= {*duet.__all__, *packages, "backends"}, page.name
