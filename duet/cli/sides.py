"""Which interpreter runs a side of `duet diff`: read from its file's imports, or from what kind of file it is.

The author's code is not run here. Imports at the top of a file count, and those within functions that the named one
uses; files beside it are read too. Names of packages lead to a backend by the key `packages` of its configuration.
"""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from subprocess import DEVNULL, PIPE
from typing import NamedTuple

from duet.cli.backends import CONFIGS, Backend, backends, read_keys
from duet.cli.environments import any_environment, environment_exists, setup
from duet.cli.terminal import Stop

__all__ = ["Interpreter", "find_interpreter", "packages_of"]


class Interpreter(NamedTuple):
    """The interpreter of a side, and the backend that its file belongs to, "" if to none."""

    python: str
    backend: str


def find_interpreter(label: str, reference: str, python: str | None = None) -> Interpreter:
    """Return the interpreter of a side.

    Args:
        label: "A" or "B", for messages.
        reference: "FILE.py:FUNCTION", "module:FUNCTION", or a file of a model.
        python: the user's choice, which wins: a path, or the name of a backend for its environment.

    Raises:
        Stop: no environment can run it; the message says what to do.
    """
    option = f"--{label.lower()}-python"
    if python in backends():
        python = environment(backends()[python], label, reference, option)
    own = None if python is None else shutil.which(str(Path(python).expanduser()))
    if python is not None and own is None:
        names = ", ".join(backends())
        raise Stop(
            f"{option}: {python!r} was given; it must be the path of a Python, or one of {names} for its environment"
        )
    place, colon, function = reference.rpartition(":")
    is_code = bool(colon) and (place.endswith(".py") or all(word.isidentifier() for word in place.split(".")))
    if not is_code:
        return interpreter_of_file(Path(reference).expanduser(), own, label)
    needed = packages_of(place, function, Path.cwd())
    known = backends()
    fitting = [name for name in known if needed & set(packages(name))]
    if own is not None:
        return Interpreter(own, fitting[0] if len(fitting) == 1 else "")
    if len(fitting) == 1:
        return Interpreter(environment(known[fitting[0]], label, reference, option), fitting[0])
    foreign = sorted(needed - standard_library())
    existing = [backend for backend in known.values() if environment_exists(backend)]
    missing = {backend.name: lacking(setup(backend), foreign) for backend in existing} if foreign else {}
    complete = [name for name, lacks in missing.items() if not lacks]
    if len(fitting) > 1:
        if len(complete) == 1:
            return Interpreter(setup(known[complete[0]]), "")
        raise Stop(
            f"{label}: {place} imports {' and '.join(known[name].package for name in fitting)}; put each side into a "
            f"file of its own, or name the interpreter with {option} PATH"
        )
    if foreign and existing and not complete:
        lacks = sorted(set.intersection(*map(set, missing.values()))) or foreign
        raise Stop(
            f"{label}: {place} imports {', '.join(lacks)}, which no environment has; name an interpreter that has it "
            f"with {option} PATH"
        )
    return Interpreter(setup(known[complete[0]]) if complete else any_environment(), "")


def environment(backend: Backend, label: str, reference: str, option: str) -> str:
    """Return the interpreter of a backend, or stop and say which side needs it."""
    try:
        return setup(backend)
    except Stop as error:
        raise Stop(
            f"{label}: {reference} needs {backend.title}; name an interpreter that has it with {option} PATH ({error})",
            error.code,
        ) from error


def interpreter_of_file(path: Path, own: str | None, label: str) -> Interpreter:
    """Return the interpreter of a file of a model; what is no such file is refused by the comparison itself."""
    known = backends()
    if own is not None:
        # A run of Duet is computed by whichever framework this interpreter has.
        found = [name for name, backend in known.items() if not lacking(own, [backend.package])]
        return Interpreter(own, found[0] if len(found) == 1 else "")
    for name in known:
        forms = re.findall(r"[\w.]+", read_keys(CONFIGS / "backend" / f"{name}.yaml").get("network_files", ""))
        if any(path.suffix == form or (not form.startswith(".") and (path / form).is_file()) for form in forms):
            return Interpreter(environment(known[name], label, str(path), f"--{label.lower()}-python"), name)
    if path.suffix == ".onnx":
        needs = ["onnx", "onnxruntime"]
        existing = [backend for backend in known.values() if environment_exists(backend)]
        able = [python for python in map(setup, existing) if not lacking(python, needs)]
        if existing and not able:
            raise Stop(
                f"{label}: {path} needs the packages {' and '.join(needs)}, which no environment has; install them, or "
                f"name an interpreter that has them with --{label.lower()}-python PATH"
            )
        return Interpreter(able[0] if able else any_environment(), "")
    trained = backend_of_run(path)
    if trained in known:
        return Interpreter(environment(known[trained], label, str(path), f"--{label.lower()}-python"), trained)
    return Interpreter(any_environment(), "")


def backend_of_run(path: Path) -> str:
    """Return the backend that the configuration of a run names, or ""."""
    folders = (path, path.parent, path.parent.parent)
    files = [folder / "config.yaml" for folder in folders]
    text = next((file.read_text(encoding="utf-8") for file in files if file.is_file()), "") if path.is_dir() else ""
    match = re.search(r"^backend:\n(?:  .*\n)*?  name: *([\w.-]+)", text, re.MULTILINE)
    return match.group(1) if match else ""


def packages(name: str) -> list[str]:
    """Return the packages that show that a file belongs to a backend."""
    return re.findall(r"[\w.]+", read_keys(CONFIGS / "backend" / f"{name}.yaml").get("packages", ""))


def lacking(python: str, names: Sequence[str]) -> list[str]:
    """Return which packages an interpreter does not have."""
    code = "import sys, importlib.util as u; print(*[n for n in sys.argv[1:] if u.find_spec(n) is None])"
    try:
        answer = subprocess.run([python, "-c", code, *names], stdout=PIPE, stderr=DEVNULL, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return list(names)
    return answer.decode().split()


def standard_library() -> set[str]:
    """Return the names of the modules of Python itself, and of what every environment has."""
    return set(getattr(sys, "stdlib_module_names", sys.builtin_module_names)) | {"numpy", "__future__"}


def packages_of(place: str, function: str, folder: Path) -> set[str]:
    """Return the packages that code needs: those that its file imports, and the files of the author beside it.

    Args:
        place: "FILE.py" or "module".
        function: the name of the object in it.
        folder: where relative paths and modules begin.
    """
    if place.endswith(".py"):
        file = folder / Path(place).expanduser()
        roots = [file.parent, *package_roots(file)]
    else:
        roots = [folder]
        found = module_file(place, roots)
        if found is None:
            return {place.split(".")[0]}
        file = found
    return walk(file, roots, function.split(".")[0]) or walk(file, roots, None)


def package_roots(file: Path) -> list[Path]:
    """Return the folder that holds the package of a file, if it is in one."""
    folder = file.parent
    while (folder / "__init__.py").is_file() and folder != folder.parent:
        folder = folder.parent
    return [folder]


def module_file(name: str, roots: Iterable[Path]) -> Path | None:
    """Return the file of a module of the author, or None; a folder without __init__.py is a package too."""
    for root in roots:
        path = root.joinpath(*name.split("."))
        for candidate in (path.with_name(path.name + ".py"), path / "__init__.py"):
            if candidate.is_file():
                return candidate
        if path.is_dir() and any(path.glob("*.py")):
            return path / "__init__.py"  # not there: it imports nothing
    return None


def walk(file: Path, roots: list[Path], function: str | None) -> set[str]:
    """Return the packages that a file and the author's files that it imports need.

    Args:
        file: where to begin.
        roots: the folders in which the author's modules are searched.
        function: its imports count too, and those of what it uses; None counts every import.
    """
    found, todo, seen = set(), [(file, function)], set()
    while todo:
        path, name = todo.pop()
        if path in seen or not path.is_file():
            continue
        seen.add(path)
        for module, level in imports(path, name, function is None):
            near = module_file(module, roots if level == 0 else [path.parents[level - 1]])
            owner = module_file(module.split(".")[0], roots) if level == 0 else near
            todo += [(each, None) for each in (near, owner) if each is not None]
            if level == 0 and owner is None:
                found.add(module.split(".")[0])
    return found


def imports(path: Path, function: str | None, everywhere: bool) -> set[tuple[str, int]]:
    """Return (module, level of a relative import) for the imports of a file.

    Those at its top count, and those within what the function uses; all of them if `everywhere`.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
        tree = ast.parse(text)
    except (OSError, SyntaxError, ValueError):  # told by the interpreter of the side
        return set()
    if everywhere:
        return within(ast.walk(tree))
    named = {node.name: node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    found = within(top_level(tree.body))
    todo, seen = [function] if function else [], set()
    while todo:
        name = todo.pop()
        if name in named and name not in seen:
            seen.add(name)
            nodes = list(ast.walk(named[name]))
            found |= within(nodes)
            todo += [node.id for node in nodes if isinstance(node, ast.Name)]
    return found


def top_level(body: Sequence[ast.stmt]) -> list[ast.stmt]:
    """Return the statements that run when a file is imported, those of its `if` and `try` too."""
    result = []
    for statement in body:
        result.append(statement)
        for part in ("body", "orelse", "finalbody"):
            if isinstance(statement, (ast.If, ast.Try, ast.With)):
                result += top_level(getattr(statement, part, []))
        for handler in getattr(statement, "handlers", []):
            result += top_level(handler.body)
    return result


def within(nodes: Iterable[ast.AST]) -> set[tuple[str, int]]:
    """Return (module, level) for the import statements among some nodes."""
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {(alias.name, 0) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            # What is imported from a package may be a module of it.
            head = f"{node.module}." if node.module else ""
            found |= {(head + alias.name, node.level) for alias in node.names}
            found |= {(node.module, node.level)} if node.module else set()
    return found
