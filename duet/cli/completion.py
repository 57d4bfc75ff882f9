"""Tab completion for bash and zsh.

`duet completion bash` prints a script for the shell. When the tab key is pressed, the script asks
`duet completion words -- WORDS...` for the words that complete the last of WORDS. They come from the files in configs/:
groups with their options, and the keys of these files. No environment is needed.
"""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

from duet.cli.backends import CONFIGS, ROOT, backends
from duet.cli.diff import MODES, make_parser
from duet.cli.experiments import Command, experiments
from duet.cli.terminal import Stop, one_of
from duet.layout import INSTALLED

__all__ = ["complete", "completion_command"]

TOOLS = ("demo", "test", "setup", "run", "launch", "diff", "completion")

# Where the script `duet` is not installed, the first line defines it as a function.
DEFINE = """type duet >/dev/null 2>&1 ||
    duet() {{ {variables}{python} -m duet "$@"; }}
"""
CHECKOUT = "PYTHONPATH={root}${{PYTHONPATH:+:$PYTHONPATH}} "

# bash cuts words at "=" and ":" before it calls the function. So the words are read from the line itself, and what
# comes before the last "=" is removed from each answer, which then replaces the part after it.
BASH = """_duet() {
    local line=${COMP_LINE:0:COMP_POINT} words cur
    read -r -a words <<< "$line"
    [[ $line == *' ' ]] && words+=("")
    cur=${words[${#words[@]}-1]}
    local IFS=$'\\n'
    COMPREPLY=($(duet completion words -- "${words[@]:1}" 2>/dev/null))
    [[ ${#COMPREPLY[@]} == 1 && ${COMPREPLY[0]} != *= && ${COMPREPLY[0]} != *. ]] && COMPREPLY=("${COMPREPLY[0]} ")
    [[ $cur == *=* ]] && COMPREPLY=("${COMPREPLY[@]#"${cur%=*}="}")
}
complete -o nospace -o default -F _duet duet
"""

ZSH = """_duet() {
    local -a found ending
    found=("${(@f)$(duet completion words -- "${(@Q)words[2,CURRENT]}" 2>/dev/null)}")
    found=(${found:#})
    ending=(${(M)found:#*[=.]})
    found=(${found:#*[=.]})
    (( ${#ending} )) && compadd -S '' -a ending
    (( ${#found} )) && compadd -a found
    (( ${#ending} + ${#found} )) || _files
}
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit }
compdef _duet duet
"""
SHELLS = {"bash": BASH, "zsh": ZSH}


def completion_command(args: list[str]) -> int:
    """Print a script that completes commands, groups and keys with the tab key.

    usage: eval "$(python3 -m duet completion bash)"    in ~/.bashrc, or the same with zsh in ~/.zshrc

    Where the script `duet` is not installed, this also defines `duet` as a function that works in any folder.
    """
    if args[:2] == ["words", "--"]:
        print("\n".join(complete(args[2:])))
        return 0
    if len(args) != 1:
        raise Stop("completion: give the name of a shell; for example: duet completion bash")
    script = SHELLS[one_of("shell", args[0], SHELLS)]
    variables = "" if INSTALLED else CHECKOUT.format(root=shlex.quote(str(ROOT)))
    print(DEFINE.format(variables=variables, python=shlex.quote(sys.executable)) + script, end="")
    return 0


def complete(words: list[str]) -> list[str]:
    """Return the words that complete the last of `words`, which follow `duet` on the command line."""
    *before, last = words or [""]
    if before[:1] == ["launch"]:
        before = before[2:]
    commands = experiments()
    if not before:
        candidates = [*commands, *TOOLS] if words[:1] != ["launch"] else list(commands)
    elif before[0] in commands:
        candidates = overrides(commands[before[0]], last)
    elif before == ["completion"]:
        candidates = list(SHELLS)
    elif before[0] == "diff":
        candidates = diff_words(before)
    elif before[0] == "setup" or before == ["run"]:
        candidates = [*backends(), *(("--cpu", "--extra", "--default") if before[0] == "setup" else ())]
    else:
        candidates = []
    return sorted(word for word in set(candidates) if word.startswith(last))


def diff_words(before: list[str]) -> list[str]:
    """Return the options of `diff`, or the values of the option before; file names are the shell's."""
    values = {"--mode": MODES, "--precision": ("float64", "float32"), "--copy-weights": ("a-to-b", "b-to-a")}
    if before[-1] in values:
        return list(values[before[-1]])
    return [option for action in make_parser()._actions for option in action.option_strings if option != "-h"]


def overrides(command: Command, last: str) -> list[str]:
    """Return the overrides that may complete a word: `group=option`, or a key that ends in "=" or "."."""
    group, equals, _ = last.partition("=")
    if equals:
        head = re.match(r".*[=,]\[?", last).group()  # so that each option of a list or a sweep completes
        return [head + option for option in options(group.lstrip("+"))]
    groups = {path.name for path in CONFIGS.iterdir() if path.is_dir() and options(path.name)}
    own = keys_of(command.config) - {"defaults", "hydra"}
    candidates = [f"{name}=" for name in groups | own]
    if "." in last:
        group = last.split(".", 1)[0]
        candidates += [
            f"{group}.{key}=" for path in (CONFIGS / group).glob("*.yaml") for key in keys_of(path) - {"defaults"}
        ]
    else:
        candidates += [f"{name}." for name in groups]
    return [*candidates, "--multirun", "--help", "--cfg"]


def options(group: str) -> list[str]:
    """Return the options of a group of configs/."""
    return [path.stem for path in (CONFIGS / group).glob("*.yaml")]


def keys_of(path: Path) -> set[str]:
    """Return the keys at the top level of a YAML file."""
    return set(re.findall(r"^([A-Za-z_]\w*):", path.read_text(encoding="utf-8"), re.MULTILINE))
