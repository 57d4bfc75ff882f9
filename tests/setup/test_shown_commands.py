"""The commands that documentation and tables show: each has keys, groups and options that exist."""

from __future__ import annotations

import functools
import inspect
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from commands import composing
from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import OverrideType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import benchmarks.schema  # noqa: F401  (registers the schema of bench)
from diffusion_core.common.errors import DuetError
from duet.cli import demo, testing
from duet.cli.backends import backends
from duet.cli.experiments import experiments
from duet.cli.main import COMMANDS
from duet.cli.stages import split_template
from experiments.config.arguments import read_arguments

ROOT = Path(__file__).resolve().parents[2]
SHOWN = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(
        {*(ROOT / "docs").glob("**/*.md")} - {ROOT / "docs/extending.md"}
    ),  # it adds options; a test of its own runs it
    *(ROOT / f"{command.module.replace('.', '/')}.py" for command in experiments().values()),
]
PLACEHOLDERS = {"experiment": "digits", "model": "digits", "study": "demo", "backend": "torch"}


def shown_commands(text: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Find `python3 -m duet [launch N] COMMAND KEY=VALUE ...` in a text, up to a comment, a quote or the line's end."""
    for found in re.finditer(
        r"python3 -m duet (?:launch \d+ )?([a-z_]+)((?: [^\n`\"]*)?)", text.replace("\\\\\n", " ").replace("\\\n", " ")
    ):
        command = re.split(r" #|   |\s\[", found.group(2))[0]
        if found.group(1) in experiments() and "{" not in command:
            yield (
                found.group(1),
                tuple(word for word in shlex.split(command) if re.match(r"(?!from=)[\w.@/+~]+=(?!\.\.\.)", word)),
            )


def settled(word: str) -> str:
    """Replace a placeholder such as model=NAME or batch=N by an option or a number, and a sweep by its first value."""
    key, value = word.split("=", 1)
    if key in PLACEHOLDERS and (value.isupper() or "|" in value):
        return f"{key}={PLACEHOLDERS[key]}"
    if value in ("N", "BATCH"):
        return f"{key}=1"
    return word.split(",")[0] if not re.search(r"[\[({'\\]", value) else word


def apply(started: dict[tuple[str, ...], DictConfig], name: str, words: Sequence[str]) -> None:
    """Compose the choices of groups, once for all commands with the same, and set the values as Hydra does."""
    overrides = OverridesParser.create().parse_overrides(list(words))
    values = [
        one for one in overrides
        if one.type is OverrideType.CHANGE and re.split("[@/]", one.key_or_group)[0] not in groups()
    ]  # fmt: skip
    rest = tuple(one.input_line for one in overrides if one not in values)
    if (name, *rest) not in started:
        started[name, *rest] = compose(name, list(rest), return_hydra_config=True)
    for one in values:
        OmegaConf.update(started[name, *rest], one.key_or_group, one.value(), merge=True)


@functools.cache
def groups() -> list[str]:
    """Return the groups of configurations, in files and registered ones."""
    return GlobalHydra.instance().config_loader().list_groups("")


def test_a_command_with_a_wrong_word_does_not_compose():
    started = {}
    with composing():
        for word in ("trainer.image=3", "trainer.images=many", "sampler.options.etta=1", "sampler=ddimm", "nothing=1"):
            with pytest.raises((HydraException, OmegaConfBaseException)):
                apply(started, "train", ["sampler=ddim", "trainer.images=64", word])
        apply(started, "train", ["sampler=ddim", "trainer.images=64"])


def test_every_command_that_a_text_shows_composes():
    shown = {}
    for file in SHOWN:
        for name, words in shown_commands(file.read_text()):
            shown.setdefault((name, tuple(sorted(map(settled, words)))), file.name)
    assert len(shown) > 80
    wrong, started = [], {}
    with composing():
        for (name, words), file in shown.items():
            try:
                apply(started, name, read_arguments(words, name))
            except (DuetError, HydraException, OmegaConfBaseException) as error:
                wrong.append(f"{file}: {name} {' '.join(words)}: {error}")
    assert not wrong, "\n".join(wrong)


def test_every_experiment_shows_how_it_is_called():
    for name, command in experiments().items():
        assert name in {found for found, _ in shown_commands(command.doc)}, name


def test_the_page_of_commands_has_the_line_of_the_help_for_each():
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", (ROOT / "docs/commands.md").read_text(), re.MULTILINE))
    summaries = {name: inspect.getdoc(command).split("\n", 1)[0].rstrip(".") for name, command in COMMANDS.items()}
    summaries |= {name: command.summary for name, command in experiments().items()}
    assert rows == {name: text[0].lower() + text[1:] for name, text in summaries.items()}


def test_every_command_of_demo_and_test_composes():
    titles = {name: backend.title for name, backend in backends().items()}
    values = {"x": "a folder", "b": "tf", "o": "torch", "p": "float32", "t": "1"}
    stages = [*testing.stages(list(titles)), *demo.stages(titles)]
    commands = [split_template(stage.template, values) for stage in stages if not stage.template.startswith("pytest")]
    assert len(commands) == 8
    with composing():
        for name, *words in commands:
            compose(name, words)
