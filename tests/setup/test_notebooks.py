"""The notebooks: they run, the outputs that they keep are theirs, and twins of two frameworks agree."""

from __future__ import annotations

import os
import re
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest

import duet
from duet.cli.backends import ROOT, backends

update = SimpleNamespace(**runpy.run_path(str(ROOT / "notebooks" / "update.py"), run_name="update"))
NOTEBOOKS = update.notebooks()
OWN = {(ROOT / backend.environment).resolve(): name for name, backend in backends().items()}
HERE = os.environ.get("DUET_BACKEND") or OWN.get(Path(sys.prefix).resolve())
FIRST, *_, LAST = backends()  # the last runs the notebooks of no backend, whose outputs are from the first
LONG = "05_digits"  # it trains for a minute in the last, where it is slow; the first runs it instead
EVERY = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def outputs(notebook):
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def sources(notebook, kind):
    return [cell.source for cell in notebook.cells if cell.cell_type == kind]


def executed(backend):
    """Yield the notebooks that run in the environment of a backend, with their marks."""
    for path in NOTEBOOKS:
        is_long = path.stem == LONG
        if backend in ({update.split_name(path)[1]} - {None} or {LAST, FIRST if is_long else LAST}):
            marks = [pytest.mark.slow] if is_long and backend == LAST else []
            yield pytest.param(path, marks=marks, id=path.stem)


def test_every_notebook_is_executed():
    everywhere = [each.id for backend in backends() for each in executed(backend) if not each.marks]
    assert sorted(everywhere) == [path.stem for path in NOTEBOOKS]


@pytest.mark.notebook
@pytest.mark.parametrize("path", list(executed(HERE)))
def test_a_notebook_runs_and_gives_the_outputs_that_it_keeps(path):
    found = list(update.differences(update.read(path), update.execute(update.read(path))))
    advice = f"if this is meant: python3 -m duet run {HERE} -- notebooks/update.py notebooks/{path.name}"
    assert not found, "\n".join([*found, advice])


@EVERY
def test_the_kept_outputs_are_of_one_run_from_the_top_without_errors_or_warnings(path):
    notebook = update.read(path)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert {output.output_type for output in outputs(notebook)} <= {"stream", "display_data", "execute_result"}
    assert all(output.get("name") != "stderr" for output in outputs(notebook))
    assert sum("image/png" in output.get("data", {}) for output in outputs(notebook)) >= 2


@EVERY
def test_a_notebook_is_small_and_keeps_nothing_of_the_machine(path):
    assert path.stat().st_size < 600_000
    notebook = update.read(path)
    assert notebook.metadata == update.METADATA and notebook == update.cleaned(notebook, compress=False)
    assert not re.search(r"(?<![\w.])/(home|root|tmp|work|Users)/|[A-Z]:\\\\", path.read_text(encoding="utf-8"))


@EVERY
def test_a_notebook_says_what_one_learns_and_ends_with_an_exercise(path):
    notebook = update.read(path)
    texts = sources(notebook, "markdown")
    assert re.match(rf"# {int(path.stem[:2])}\. .+\n\nYou will ", texts[0])
    assert (
        sum(text.startswith("## Exercise\n") for text in texts) == 1 and "duet.check(" in sources(notebook, "code")[-1]
    )
    for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", "\n".join(texts)):
        assert (path.parent / link).exists(), link


@EVERY
def test_a_notebook_names_only_what_duet_has(path):
    notebook = update.read(path)
    text = "\n".join([*sources(notebook, "code"), *sources(notebook, "markdown")])
    names = set(re.findall(r"\bduet\.([A-Za-z_]\w*)", text))
    assert names and names <= set(duet.__all__)


@pytest.mark.parametrize(
    "path", [path for path in NOTEBOOKS if update.first_twin(path) != path], ids=lambda path: path.stem
)
def test_twins_differ_in_the_cells_of_their_framework_only_and_draw_the_same_pictures(path):
    notebook, twin = update.read(path), update.read(update.first_twin(path))
    assert len(notebook.cells) == len(twin.cells)
    for own, other in zip(notebook.cells, twin.cells, strict=True):
        assert update.is_framework(own) == update.is_framework(other)
        assert update.is_framework(own) or own.source == other.source
    assert list(update.differences(twin, notebook)) == []


def test_changed_outputs_are_reported():
    notebook = update.read(NOTEBOOKS[0])
    assert list(update.differences(notebook, notebook)) == []
    figures = [output for output in outputs(notebook) if "image/png" in output.get("data", {})]
    texts = [output for output in outputs(notebook) if "text" in output]
    other = update.read(NOTEBOOKS[0])
    changed = [output for output in outputs(other) if "image/png" in output.get("data", {})]
    changed[0].data["image/png"] = figures[-1].data["image/png"]
    next(output for output in outputs(other) if "text" in output).text = texts[0].text.replace("alpha", "beta")
    assert len(list(update.differences(notebook, other))) == 2
    other.cells[[cell.cell_type for cell in other.cells].index("code")].outputs = figures[:1]
    assert len(list(update.differences(notebook, other))) == 3


def made_up(*cells):
    """Return a notebook of (source, tags) pairs."""
    made = [nbformat.v4.new_code_cell(source, metadata={"tags": list(tags)}) for source, *tags in cells]
    return nbformat.v4.new_notebook(cells=made)


def test_a_twin_gets_all_cells_but_those_of_its_framework():
    own = made_up(("old",), ("import tensorflow", "framework"), ("gone",))
    twin = made_up(("new",), ("more",), ("import torch", "framework"))
    shared = update.with_shared_cells(own, twin)
    assert [cell.source for cell in shared.cells] == ["new", "more", "import tensorflow"]
    with pytest.raises(ValueError, match="1 cells are tagged framework"):
        update.with_shared_cells(own, made_up(("no framework",)))


def test_nothing_of_the_machine_is_kept():
    notebook = made_up(("import tensorflow",))
    notebook.metadata["kernelspec"] = {"name": "mine", "display_name": "/home/me", "language": "python"}
    machine = "WARNING: All log messages before absl::InitializeLog()\nI0000 00:00:17.5  10 port.cc:1] oneDNN is on.\n"
    notebook.cells[0].outputs = [
        nbformat.v4.new_output("stream", name="stderr", text=machine),
        nbformat.v4.new_output("stream", name="stdout", text="one "),
        nbformat.v4.new_output("stream", name="stdout", text="two"),
    ]
    cleaned = update.cleaned(notebook)
    assert cleaned.metadata == update.METADATA and [output.text for output in outputs(cleaned)] == ["one two"]
    notebook.cells[0].outputs[0].text += "UserWarning: this is kept\n"
    assert outputs(update.cleaned(notebook))[0].text == "UserWarning: this is kept\n"


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("error 0.501", "error 0.502", True),
        ("error 0.501", "error 0.52", False),
        ("error 1.25e-03", "error 1.26e-03", True),
        ("error 1.25e-03", "error 1.25e-02", False),
        ("12 steps", "13 steps", False),
        ("yes 1.0", "no 1.0", False),
        ("-0.00", "0.00", True),
    ],
)
def test_numbers_of_two_outputs_are_compared_up_to_rounding(old, new, same):
    assert update.same_text(old, new) == same
