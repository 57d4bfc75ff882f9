"""The list of commands of `duet`, and the help."""

from __future__ import annotations

import inspect
import os
import signal
import sys

from duet.cli.backends import backends
from duet.cli.completion import completion_command
from duet.cli.demo import demo_command
from duet.cli.diff import diff_command, make_parser
from duet.cli.environments import setup_command
from duet.cli.experiments import experiments, launch_command, run_command, run_experiment
from duet.cli.terminal import Stop, one_of, say
from duet.cli.testing import test_command
from duet.layout import INSTALLED

__all__ = ["COMMANDS", "main"]

COMMANDS = {
    "demo": demo_command,
    "test": test_command,
    "setup": setup_command,
    "run": run_command,
    "launch": launch_command,
    "diff": diff_command,
    "completion": completion_command,
}

HELP = """\
usage: python3 -m duet COMMAND [ARGS ...]

Environments, tests and tools:
{tools}

Experiments, each with options KEY=VALUE:
{experiments}

`duet COMMAND --help` describes a command and its options.

{environments} backend=NAME chooses the backend of an experiment.

Environment variables:
    DUET_<BACKEND>_PYTHON   another interpreter for a backend, for example one of conda
    DUET_BROWSER            the Chromium in which `test` operates the reports, or none

Exit code: 0 for success, 1 for models that `diff` finds unequal, 2 for arguments that do not fit, else that of the
command that failed."""

IN_CHECKOUT = """\
Every backend ({backends}) has a virtual environment of its own. It is set up when a command first needs it,
with pip and your pip settings, and updated when pyproject.toml or its constraints file changes. Each command runs in
the environment that it needs."""

AS_PACKAGE = """\
Duet was installed as a package: commands run in {python}.
A backend ({backends}) needs its framework there. Tests need a checkout of the repository."""


def main(args: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    args = sys.argv[1:] if args is None else args
    try:
        signal.signal(signal.SIGTERM, stop)  # so that child processes end too
        if not args or args[0] in ("-h", "--help"):
            print(help_text())
            return 0 if args else 2
        name, rest = args[0], args[1:]
        one_of("command", name, [*COMMANDS, *experiments()])
        if name not in COMMANDS:
            return run_experiment(name, rest)
        if rest[:1] in (["-h"], ["--help"]):
            print(make_parser().format_help().rstrip() if name == "diff" else inspect.getdoc(COMMANDS[name]))
            return 0
        return COMMANDS[name](rest)
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (Stop, OSError, KeyboardInterrupt) as error:
        say(str(error) or "interrupted", sys.stderr)
        return getattr(error, "code", 130 if isinstance(error, KeyboardInterrupt) else 1)


def stop(number: int, _: object) -> None:
    """End the command with the exit code of a process that a signal ended."""
    raise Stop(f"stopped by signal {number}", 128 + number)


def help_text() -> str:
    """Return the overview of all commands."""
    tools = {name: inspect.getdoc(command).split("\n", 1)[0].rstrip(".") for name, command in COMMANDS.items()}
    commands = {name: command.summary for name, command in experiments().items()}
    width = max(map(len, [*tools, *commands]))

    def table(summaries: dict[str, str]) -> str:
        return "\n".join(f"    {name:<{width}}  {summary}" for name, summary in summaries.items())

    environments = (AS_PACKAGE if INSTALLED else IN_CHECKOUT).format(
        backends=", ".join(backends()), python=sys.executable
    )
    return HELP.format(tools=table(tools), experiments=table(commands), environments=environments)
