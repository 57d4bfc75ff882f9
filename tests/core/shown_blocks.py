"""The blocks of Python and of shell that README, CONTRIBUTING and docs/ show, and what a test does with each.

A comment before a block, on a line of its own, says where a test differs from what the block shows; a reader of the
page does not see it. Its parts are separated by semicolons:

    <!-- test: images=640 batch=64 -->              other values of these arguments in a block of Python
    <!-- test: train trainer.images=64; sample sampler.steps=2 -->    more keys for commands of a block of shell
    <!-- test: small -->                           the keys of SMALL for the commands of a block of shell
    <!-- test: torch, REASON -->  (or tf)           run with this backend only
    <!-- test: slow, REASON -->                     run by `pytest -m slow`
    <!-- test: skip, REASON -->                     not run
    <!-- test: skip evaluate prepare, REASON -->    the same for these commands of a block of shell

A block without a comment runs as it stands. Blocks of other languages are not run.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PYTHON, SHELL = ("python", "py"), ("sh", "bash", "shell", "console")
COMMAND = re.compile(
    r"(\$ )?(python3? -|duet |pytest\b|pip |git |srun |eval |export |mkdocs |ruff |cd |\.ci/|cp |mkdir )"
)
STATEMENT = re.compile(r"(>>> |from [\w.]+ import |import \w+|\w+(, \w+)* = [\w.]+\(|duet\.\w+\()")
ONLY = {"torch": ("torch", "torchvision", "diffusers"), "tf": ("tensorflow", "keras")}
SMALL = {
    "train": (
        "trainer.images=16", "trainer.batch=8", "lr.warmup_images=0", "model.channels=16", "validation.count=8",
        "sample.count=10", "sampler.steps=2",
    ),
    "sample": ("sample.count=10", "sampler.steps=2"),
}  # fmt: skip
FURTHER = ("trainer.images=32",)  # of a training that continues one of these


@dataclass(frozen=True)
class Mark:
    """What the comment before a block says; see the head of this file."""

    skip: str = ""
    skipped: dict[str, str] = field(default_factory=dict)
    slow: str = ""
    only: str = ""
    settings: dict[str, tuple[str, ...]] = field(default_factory=dict)
    numbers: tuple[str, ...] = ()

    @classmethod
    def read(cls, text: str) -> Mark:
        """Read the text of a comment; an unknown part, or a missing reason, is an error."""
        made: dict = {"skipped": {}, "settings": {}}
        for part in filter(None, map(str.strip, text.split(";"))):
            words, comma, reason = part.partition(",")
            kind, *names = words.split()
            if kind in ("skip", "slow", *ONLY):
                if not (comma and len(reason.split()) >= 2):
                    raise ValueError(f"{part!r} gives no reason, as in: {kind}, REASON")
                if kind == "skip" and names:
                    made["skipped"] |= dict.fromkeys(names, reason.strip())
                elif kind in ONLY:
                    made["only"] = kind
                else:
                    made[kind] = reason.strip()
            elif part == "small":
                made["settings"] |= SMALL
            elif "=" in kind:
                made["numbers"] = tuple(part.split())
            else:
                made["settings"][kind] = made["settings"].get(kind, ()) + tuple(shlex.split(part)[1:])
        return cls(**made)


@dataclass(frozen=True)
class Block:
    """A block of a page: its first line, language ("python", "shell" or another), text and mark."""

    page: str
    line: int
    language: str
    text: str
    mark: Mark

    def __str__(self) -> str:
        """Return the place of the block."""
        return f"{self.page}:{self.line}"

    def runs_with(self, backend: str) -> bool:
        """Return whether the block needs no backend, or this one."""
        return self.only in ("", backend)

    @property
    def only(self) -> str:
        """Return the backend that the block needs, from its mark or from what it imports; "" for any."""
        if self.mark.only or self.language != "python":
            return self.mark.only
        imported = set(re.findall(r"^\s*(?:>>> )?(?:import|from) (\w+)", self.text, re.MULTILINE))
        return next((backend for backend, names in ONLY.items() if imported & set(names)), "")

    @property
    def code(self) -> str:
        """Return the text of a block of Python with the numbers of its mark."""
        code = self.text
        for number in self.mark.numbers:
            name, _, value = number.partition("=")
            code, count = re.subn(rf"\b{re.escape(name)}=[\w.\"]+", f"{name}={value}", code)
            if not count:
                raise ValueError(f"{self}: the comment sets {name}, which the block does not have")
        return code

    @property
    def commands(self) -> list[list[str]]:
        """Return the commands of a block of shell as words, without comments and the ellipsis `...`."""
        text = re.sub(r"^\$ ", "", self.text.replace("\\\n", " "), flags=re.MULTILINE)
        lines = [shlex.split(line, comments=True) for line in text.splitlines()]
        return [[word for word in words if word != "..."] for words in lines if words]


def pages() -> list[Path]:
    """Return the pages whose blocks are tested."""
    return [
        path
        for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md")))
        if path.exists()
    ]


def blocks(path: Path) -> list[Block]:
    """Return all blocks of a page."""
    return list(read_blocks(path.read_text("utf-8"), path.relative_to(ROOT).as_posix()))


def read_blocks(text: str, page: str) -> Iterator[Block]:
    """Return the fenced and the indented blocks of a text."""
    lines, i, before, in_list = text.splitlines(), 0, "", False
    while i < len(lines):
        line, start = lines[i], i
        if fence := re.match(r" {0,3}(`{3,}|~{3,})\s*([\w+-]*)", line):
            i += 1
            while i < len(lines) and not lines[i].strip().startswith(fence[1]):
                i += 1
            content = "\n".join(lines[start + 1 : i])
            yield make_block(page, start + 1, fence[2], content, before)
            i += 1
            before = ""
            continue
        if line.startswith("    ") and not in_list and (i == 0 or not lines[i - 1].strip()):
            while i < len(lines) and (lines[i].startswith("    ") or not lines[i].strip()):
                i += 1
            content = "\n".join(piece[4:] for piece in lines[start:i]).rstrip()
            yield make_block(page, start + 1, "", content, before)
            before = ""
            continue
        if line.strip():
            in_list = bool(re.match(r"\s*([-*+]|\d+[.)]) ", line)) or (in_list and line.startswith(" "))
            before = line
        i += 1


def make_block(page: str, line: int, language: str, text: str, before: str) -> Block:
    """Return a block, whose language is recognised where the page does not name it."""
    comment = re.fullmatch(r"\s*<!-- test: (.*?) -->\s*", before)
    rows = text.splitlines()
    if language in PYTHON:
        language = "python"
    elif language in SHELL or (not language and any(COMMAND.match(row) for row in rows)):
        language = "shell"
    elif not language and any(STATEMENT.match(row) for row in rows):
        language = "unfenced python"
    try:
        mark = Mark.read(comment[1] if comment else "")
    except ValueError as error:
        raise ValueError(f"{page}:{line}: {error}") from error
    return Block(page, line, language, text, mark)
