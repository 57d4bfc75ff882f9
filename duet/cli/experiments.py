"""Commands that run in an environment: the experiments, such as `duet train`, and `duet run` and `duet launch`.

A command NAME is a module experiments/NAME.py or benchmarks/NAME.py with a configuration NAME.yaml. It runs in the
environment of one backend:

1. that of backend=NAME on the command line; a sweep over several backends starts in that of the first, and its launcher
   starts each job in the job's own;
2. else that of the run that from=RUN names, unless the command opens no backend for these arguments: samples are
   evaluated by the third rule if that environment exists, since features may need it, as Inception needs PyTorch's;
3. else that of the backend in the defaults list of the command's configuration;
4. else, since the command needs no backend, any environment that exists.

Where Duet was installed as a package there is one environment, that of the running Python. The third rule then takes
another backend if this Python has no package of the first.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple

from duet.cli.backends import CONFIGS, ROOT, Backend, backends, default_option, get_backend
from duet.cli.environments import any_environment, checked_python, environment_exists, setup
from duet.cli.terminal import Stop, one_of, say
from duet.layout import INSTALLED, working_folder

__all__ = ["Command", "experiments", "launch_command", "run_command", "run_experiment"]

PACKAGES = ("experiments", "benchmarks")
LAUNCHER = "experiments.workers"  # starts several processes of a command


class Command(NamedTuple):
    """A command of the experiments: its module, its configuration file, and its docstring."""

    module: str
    config: Path
    doc: str

    @property
    def summary(self) -> str:
        """The first line of the docstring, without the full stop."""
        return self.doc.split("\n", 1)[0].rstrip(".")


def experiments() -> OrderedDict[str, Command]:
    """Return the commands by name. Their files are read as text, since importing them needs an environment."""
    commands = {}
    for package in PACKAGES:
        for path in (ROOT / package).glob("*.py"):
            config = CONFIGS / f"{path.stem}.yaml"
            doc = re.match(r'r?"""(.*?)"""', path.read_text(encoding="utf-8"), re.DOTALL)
            if config.is_file() and doc:
                commands[path.stem] = Command(f"{package}.{path.stem}", config, doc.group(1).strip())
    return OrderedDict(sorted(commands.items()))


def run_experiment(name: str, args: list[str], before: tuple[str, ...] = ()) -> int:
    """Run a command in its environment, with Hydra's arguments; `before` are arguments of Python before its module."""
    command = experiments()[name]
    args = with_usable_backend(command, with_backend_of_run(command, args))
    if {"-h", "--help"} & set(args):
        existing = list(filter(environment_exists, backends().values()))
        if not existing:
            first = "Install PyTorch or TensorFlow" if INSTALLED else "Run `duet setup`"
            print(f"{command.doc}\n")
            print(f"{first} first; `duet {name} --help` then also describes every group and key.")
            return 0
        return replace_process([setup(existing[0]), "-m", command.module, *args], command_variables())
    own = [arg.partition("=")[2] for arg in args if re.match(r"\+*backend\.python=.", arg)]
    if own and own[-1] != "null":
        python = checked_python("backend.python", own[-1], working_folder())
    else:
        pythons = [setup(backend) for backend in chosen_backends(command, args)]
        python = pythons[0] if pythons else any_environment()
    return replace_process([python, *before, "-m", command.module, *args], command_variables())


def with_backend_of_run(command: Command, args: list[str]) -> list[str]:
    """Return the arguments of `verify` with the backend of the run, unless one is named."""
    run = None if any(arg.startswith("backend=") for arg in args) else verified_run(command, args)
    backend = run and backend_of_record(run)
    return [*args, f"backend={backend}"] if backend else args


def with_usable_backend(command: Command, args: list[str]) -> list[str]:
    """Return arguments, with backend=NAME where an installed Duet has another backend than the default of a command."""
    default = default_option(command.config, "backend")
    if not INSTALLED or not default or run_backend(args) or any(arg.startswith("backend=") for arg in args):
        return args
    usable = [backend for backend in backends().values() if environment_exists(backend)]
    if not usable or default in [backend.name for backend in usable]:
        return args
    say(f"backend={usable[0].name}, since {sys.executable} has no {get_backend(default).package}")
    return [*args, f"backend={usable[0].name}"]


def chosen_backends(command: Command, args: list[str]) -> list[Backend]:
    """Return the backends whose environments a command needs, that in which it starts first."""
    values = [arg.partition("=")[2].strip("'\"") for arg in args if arg.startswith("backend=")]
    default = default_option(command.config, "backend")
    if not values and default:
        default = default if measures_samples(command, args) else run_backend(args) or default
    if not values or values[-1] == "null":
        return [get_backend(default)] if default else []
    folders, value = config_folders(args), values[-1]
    if "(" in value:  # choice(torch, tf), glob(*) ...
        known = backends(*folders)
        return [backend for name, backend in known.items() if "glob" in value or re.search(rf"\b{name}\b", value)]
    names = value.split(",") if {"-m", "--multirun"} & set(args) else [value]
    return [get_backend(name.strip(), *folders) for name in names if name.strip()]


def measures_samples(command: Command, args: list[str]) -> bool:
    """Return whether a command evaluates saved samples, which opens no backend, in an environment that is there."""
    of_checkpoint = any(re.match(r"(likelihood|accuracy|loss)=(?!none$|null$)", arg) for arg in args)
    default = default_option(command.config, "backend")
    return command.config.stem == "evaluate" and not of_checkpoint and environment_exists(get_backend(default))


def run_backend(args: list[str]) -> str | None:
    """Return the backend of the run that from=RUN names, or None if there is none, or its backend is not known here."""
    runs = [arg.partition("=")[2].strip("'\"") for arg in args if re.match(r"from(_run)?=.", arg)]
    if not runs:
        return None
    return backend_of_record(runs[-1])


def verified_run(command: Command, args: list[str]) -> str | None:
    """Return the path of the run, or of the certificate, that `verify` is given by its key or by its place."""
    if command.config.stem != "verify":
        return None
    keyed = [arg.partition("=")[2].strip("'\"") for arg in args if arg.startswith("run=")]
    placed = [arg for arg in args if "=" not in arg and not arg.startswith(("-", "~"))]
    return next(iter([*keyed, *placed]), None)


def backend_of_record(path: str) -> str | None:
    """Return the backend of a run, of several, or of a certificate; None if it is not known here."""
    run = Path(path).expanduser()
    if run.is_file() and run.suffix == ".json":
        match = re.search(r'"backend": *"([\w.-]+)"', run.read_text(encoding="utf-8", errors="replace"))
        return match.group(1) if match and match.group(1) in backends() else None
    run = run if run.exists() else Path(path.split(",")[0]).expanduser()
    files = [folder / "config.yaml" for folder in (run, run.parent, run.parent.parent)]
    text = next((file.read_text(encoding="utf-8") for file in files if file.is_file()), "")
    match = re.search(r"^backend:\n(?:  .*\n)*?  name: *([\w.-]+)", text, re.MULTILINE)
    return match.group(1) if match and match.group(1) in backends() else None


def config_folders(args: list[str]) -> list[Path]:
    """Return the folders of configurations that Hydra's flag --config-dir adds."""
    words = [word for arg in args for word in (arg.split("=", 1) if arg.startswith("--config-dir=") else [arg])]
    return [Path(words[i + 1]) for i, word in enumerate(words[:-1]) if word in ("--config-dir", "-cd")]


def run_command(args: list[str]) -> int:
    """Run the Python of a backend's environment.

    usage: duet run BACKEND -- ARGS...

    For example, `duet run torch -- -m pip list` lists the packages of PyTorch's environment, and
    `duet run tf -- script.py` runs a script in TensorFlow's.
    """
    if not args:
        raise Stop(f"run: no backend was given; for example: duet run {next(iter(backends()))} -- -m pip list")
    rest = args[2:] if args[1:2] == ["--"] else args[1:]
    return replace_process([setup(get_backend(args[0])), *rest], checkout_variables())


def launch_command(args: list[str]) -> int:
    """Start N processes of one run on this machine, which compute it together.

    usage: duet launch N COMMAND [ARGS ...]

    For example, `duet launch 2 train backend=torch experiment=digits` trains in two processes. parallel=NAME chooses
    how they communicate; the default is that of the backend. With GPUs, each process uses one of those that
    CUDA_VISIBLE_DEVICES names.
    """
    able = [name for name, command in experiments().items() if default_option(command.config, "parallel")]
    if len(args) < 2 or not args[0].isdigit() or int(args[0]) < 1:
        raise Stop("launch: give a number of processes and a command; for example: duet launch 2 train backend=torch")
    name = one_of("launch", args[1], able)
    command = experiments()[name]
    rest = with_usable_backend(command, args[2:])
    if not any(arg.startswith("parallel=") for arg in rest):
        rest = rest + [f"parallel={backend.parallel}" for backend in chosen_backends(command, rest)[:1]]
    return run_experiment(name, rest, ("-m", LAUNCHER, args[0]))


def checkout_variables() -> dict[str, str]:
    """Return environment variables with which a Python finds the modules of this checkout from any folder.

    An installed package needs none; its folder has the packages of its environment, which another Python must not see.
    """
    env = dict(os.environ)
    if not INSTALLED:
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), env.get("PYTHONPATH")]))
    return env


def command_variables() -> dict[str, str]:
    """Return environment variables with which a Python finds the command first, and then the working directory.

    Python itself would begin with the working directory, where a user may have a folder called experiments. The command
    appends it to the end of the path.
    """
    return {**checkout_variables(), "PYTHONSAFEPATH": "1"}


def replace_process(command: list[str], env: dict[str, str]) -> int:
    """Run a command in place of this process, so that signals and the exit code are the command's own."""
    sys.stdout.flush()
    sys.stderr.flush()
    if os.name == "nt":  # there, exec would return to the shell at once
        return subprocess.run(command, env=env, check=False).returncode
    os.execve(command[0], command, env)
    raise AssertionError("unreachable")
