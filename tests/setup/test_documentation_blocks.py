"""Every block of Python and of shell in README, CONTRIBUTING and docs/ runs, or a comment before it says why not.

The blocks of a page run in order, those of Python in one namespace, in one folder, which has a run RUN, two folders of
images, FOLDER and PHOTOS (with the parts train, val and test), data/cifar10-32 with other images, and the files of
Python that blocks of the page name in their first line, as in `# my_networks.py`.
`tests/core/shown_blocks.py` describes the comments. A command with backend=NAME runs with the backend of this
environment: what the frameworks hand to each other is the subject of other tests.
"""

from __future__ import annotations

import ast
import doctest
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from commands import call
from PIL import Image
from shown_blocks import FURTHER, ROOT, SMALL, Block, Mark, blocks, make_block, pages, read_blocks

from diffusion_core.common.errors import name_arguments
from duet.cli.experiments import experiments

PAGES = {path.relative_to(ROOT).as_posix(): blocks(path) for path in pages()}
each_page = pytest.mark.parametrize("page", PAGES)


@pytest.fixture(scope="session")
def shelf(tmp_path_factory, backend_name):
    """Make the files that pages take for granted."""
    folder = tmp_path_factory.mktemp("shelf")
    random = np.random.default_rng(0)
    for part, count in (("train", 12), ("val", 4), ("test", 4)):
        for name in ("cat", "dog"):
            (folder / "PHOTOS" / part / name).mkdir(parents=True)
            for i in range(count):
                image = Image.fromarray(random.integers(0, 256, (36, 36, 3), np.uint8))
                image.save(folder / "PHOTOS" / part / name / f"{i}.png")
    shutil.copytree(folder / "PHOTOS/train", folder / "FOLDER")
    prepared = call(
        "prepare", "data=image_folder", f"data.options.path={folder / 'PHOTOS'}", "data.options.size=32",
        f"out={folder / 'data/cifar10-32'}",
    )  # fmt: skip
    assert prepared.code == 0, prepared.err
    return folder


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory, backend_name):
    """Make a run for the pages that have RUN."""
    folder = tmp_path_factory.mktemp("run") / "RUN"
    done = call("train", f"backend={backend_name}", "experiment=digits", f"hydra.run.dir={folder}", *SMALL["train"])
    assert done.code == 0, done.err
    return folder


@pytest.fixture
def desk(shelf, tmp_path, monkeypatch):
    """Go to a folder with a copy of these files."""
    shutil.copytree(shelf, tmp_path / "desk")
    monkeypatch.chdir(tmp_path / "desk")
    return tmp_path / "desk"


def lay_out(page: str, language: str, backend: str, request: pytest.FixtureRequest) -> None:
    """Add to the desk a run, if the blocks have RUN, and the files that blocks of Python name in their first line."""
    if any(re.search(r"\bRUN\b", block.text) for block in chosen(page, language) if block.runs_with(backend)):
        shutil.copytree(request.getfixturevalue("finished_run"), "RUN")
    for block in chosen(page, "python"):
        if block.runs_with(backend) and (name := re.match(r"# (\w+\.py)\n", block.text)):
            Path(name[1]).write_text(block.text)


def chosen(page: str, language: str, slow: bool = False) -> list[Block]:
    """Return the blocks of a page that a test runs."""
    found = [block for block in PAGES[page] if block.language == language and not block.mark.skip]
    return [block for block in found if bool(block.mark.slow) == slow]


def run_page(page: str, language: str, backend: str, slow: bool = False) -> None:
    """Run blocks of a page one after the other. Names of capitals, such as DIR, are new in each block."""
    namespace: dict[str, object] = {"__name__": "__main__"}
    kept = set(os.listdir())
    for block in chosen(page, language, slow):
        if block.runs_with(backend):
            run_python(block, namespace) if language == "python" else run_shell(block, backend)
        for name in set(os.listdir()) - kept:
            if name.isupper():
                shutil.rmtree(name) if os.path.isdir(name) else os.remove(name)


def run_python(block: Block, namespace: dict[str, object]) -> None:
    name_arguments()
    if ">>> " in block.text:
        parsed = doctest.DocTestParser().get_doctest(block.code, namespace, str(block), block.page, block.line)
        runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
        assert runner.run(parsed, clear_globs=False).failed == 0, str(block)
        namespace.update(parsed.globs)
    else:
        # Numbered lines of a traceback are those of the page.
        exec(compile("\n" * block.line + block.code, str(ROOT / block.page), "exec"), namespace)


def run_shell(block: Block, backend: str) -> None:
    for words in block.commands:
        line = shlex.join(words)
        if words[:3] == ["python3", "-m", "duet"] and words[3] in experiments():
            name, *rest = words[3:]
            if name not in block.mark.skipped:
                rest = [f"backend={backend}" if word.startswith("backend=") else word for word in rest]
                settings = block.mark.settings.get(name, ())
                if name == "train" and settings and any(word.startswith("from=") for word in rest):
                    settings = (*settings, *FURTHER)
                done = call(module_of(name), *rest, *settings)
                assert done.code in (0, None), f"{block}: {line}\n{done.err}"
        elif words[0] == "python" or " ".join(words[:4]) in ("python3 -m duet run", "python3 -m duet launch"):
            own = {f"DUET_{name}_PYTHON": sys.executable for name in ("TORCH", "TF")}
            env = os.environ | own | {"PYTHONPATH": str(ROOT)}
            done = subprocess.run([sys.executable, *words[1:]], env=env, capture_output=True, text=True)
            assert done.returncode == 0, f"{block}: {line}\n{done.stderr}"
        else:
            pytest.fail(f"{block}: {line}: no test runs this; put a comment before the block: <!-- test: skip, WHY -->")


def module_of(command: str) -> str:
    return experiments()[command].module.removeprefix("experiments.")


def pages_with(language: str, slow: bool = False) -> list[str]:
    return [page for page in PAGES if chosen(page, language, slow)]


@pytest.mark.backend
@pytest.mark.parametrize("page", pages_with("python"))
def test_the_blocks_of_python_of_a_page_run(page, backend_name, desk, request):
    lay_out(page, "python", backend_name, request)
    run_page(page, "python", backend_name)


@pytest.mark.backend
@pytest.mark.either
@pytest.mark.parametrize("page", pages_with("shell"))
def test_the_blocks_of_shell_of_a_page_run(page, backend_name, desk, request):
    lay_out(page, "shell", backend_name, request)
    run_page(page, "shell", backend_name)


@pytest.mark.slow
@pytest.mark.backend
@pytest.mark.parametrize("language", ["python", "shell"])
def test_the_slow_blocks_run(language, backend_name, desk):
    for page in pages_with(language, slow=True):
        run_page(page, language, backend_name, slow=True)


@each_page
def test_blocks_of_python_are_fenced_and_parse(page):
    for block in PAGES[page]:
        assert block.language != "unfenced python", f"{block}: put ```python before it, and ``` after it"
        if block.language == "python" and ">>> " not in block.text:
            ast.parse(block.code, str(block))


@each_page
def test_a_mark_names_commands_that_the_block_has(page):
    for block in PAGES[page]:
        if block.language == "shell":
            shown = {words[3] for words in block.commands if words[:3] == ["python3", "-m", "duet"]}
            assert {*block.mark.skipped, *block.mark.settings} <= {*shown, *SMALL}, str(block)
            assert not block.mark.numbers, f"{block}: keys of a block of shell follow the name of their command"


def test_blocks_are_found_whether_fenced_or_indented_and_with_their_marks():
    text = """# A page
- an item

    of two paragraphs

Text:

<!-- test: train trainer.images=64; skip evaluate, it downloads weights -->

    python3 -m duet train a=1 \\
        b=2   # a comment
    python3 -m duet evaluate ...

<!-- test: images=64 -->
```python
import torch
train(images=25_600)
```

    layout/   of a folder
"""
    shell, python, layout = read_blocks(text, "page.md")
    assert (shell.language, python.language, layout.language) == ("shell", "python", "")
    assert shell.commands == [
        ["python3", "-m", "duet", "train", "a=1", "b=2"], ["python3", "-m", "duet", "evaluate"],
    ]  # fmt: skip
    assert shell.mark == Mark(skipped={"evaluate": "it downloads weights"}, settings={"train": ("trainer.images=64",)})
    assert python.code.endswith("train(images=64)") and python.only == "torch" and not python.runs_with("tf")


def test_indented_python_is_recognised_and_a_mark_without_a_reason_is_refused():
    assert make_block("p", 1, "", "from duet import x", "").language == "unfenced python"
    for mark in ("skip", "skip,", "slow", "skip train", "torch", "skip, why"):
        with pytest.raises(ValueError, match="gives no reason"):
            Mark.read(mark)
    with pytest.raises(ValueError, match="does not have"):
        _ = make_block("p", 1, "python", "train(images=5)", "<!-- test: batch=1 -->").code


def test_a_block_that_fails_or_that_nothing_runs_is_noticed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ZeroDivisionError):
        run_python(make_block("p", 1, "python", "1 / 0", ""), {})
    with pytest.raises(pytest.fail.Exception, match="no test runs this"):
        run_shell(make_block("p", 1, "sh", "git status", ""), "torch")
    with pytest.raises(AssertionError, match="p:1: python -c"):
        run_shell(make_block("p", 1, "sh", "python -c 'import nowhere'", ""), "torch")
    assert not list(Path(tmp_path).iterdir())
