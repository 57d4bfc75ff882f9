"""Tab completion: the words, and the scripts for bash and zsh."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from duet.cli.backends import CONFIGS, backends
from duet.cli.completion import TOOLS, complete
from duet.cli.experiments import experiments
from duet.cli.main import COMMANDS

ROOT = Path(__file__).resolve().parents[2]


def run_shell(shell: str, script: str, folder: Path) -> list[str]:
    """Run a script in a shell in another folder, after the completion of `duet` was installed in it."""
    install = f'eval "$(PYTHONPATH={ROOT} {sys.executable} -m duet completion {shell})"\n'
    options = {"bash": ["--norc", "--noprofile"], "zsh": ["-f"]}[shell]
    command = [shell, *options, "-c", install + script]
    env = {"PATH": "/usr/bin:/bin"}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("trai", {"train"}),
        ("train backend=", {f"backend={name}" for name in backends()}),
        ("train -m backend=tf,to", {"backend=tf,torch"}),
        ("evaluate metrics=[frechet,kern", {"metrics=[frechet,kernel"}),
        ("sample sampler=ddim_s", {"sampler=ddim_strided"}),
        ("train +experiment=digits_", {"+experiment=digits_classifier"}),
        ("train trainer.micro", {"trainer.micro_batch="}),
        ("train sampl", {"sampler=", "sampler."}),
        ("launch 2 trai", {"train"}),
        ("launch 2 train backend=tf", {"backend=tf"}),
        ("completion ", {"bash", "zsh"}),
        ("setup tor", {"torch"}),
        ("run t", {"torch", "tf"}),
        ("demo x", set()),
    ],
)
def test_a_line_is_completed_with_every_word_that_fits(line, expected):
    assert set(complete(line.split(" "))) == expected


def test_the_first_word_completes_to_every_command():
    assert set(complete([""])) == {*COMMANDS, *experiments()} and set(TOOLS) == {*COMMANDS}


def test_every_group_and_option_completes():
    for group in filter(Path.is_dir, CONFIGS.iterdir()):
        options = {f"{group.name}={path.stem}" for path in group.glob("*.yaml")}
        assert options == set(complete(["train", f"{group.name}="]))


def test_bash_completes_what_is_typed(tmp_path):
    # bash sets COMP_LINE and COMP_POINT, calls the function that `complete` names, and reads COMPREPLY.
    script = """
complete -p duet
try() { COMP_LINE=$1 COMP_POINT=${#1} COMPREPLY=(); _duet; printf '<%s>' "${COMPREPLY[@]}"; echo; }
try "duet trai"
try "duet train sampler=ddim_s"
try "duet train trainer.ba"
try "duet train sampl"
try "duet train -m backend=tf,to"
"""
    first, *lines = run_shell("bash", script, tmp_path)
    assert first.endswith("-F _duet duet")
    # After "=", bash replaces what follows it; a complete word ends in a space, a key in "=".
    assert lines == ["<train >", "<ddim_strided >", "<trainer.batch=>", "<sampler.><sampler=>", "<tf,torch >"]


def test_the_script_defines_duet_where_it_is_not_installed(tmp_path):
    (line,) = run_shell("bash", "duet completion words -- trai", tmp_path)
    assert line == "train"


@pytest.mark.skipif(not shutil.which("zsh"), reason="needs zsh")
def test_zsh_completes_duet(tmp_path):
    assert run_shell("zsh", 'echo "$_comps[duet]"', tmp_path) == ["_duet"]
