"""Write the generated tables of docs/*.md from the code: python docs/update_tables.py

A generated table stands between the lines ``<!-- generated: NAME -->`` and ``<!-- end -->``.
"""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from diffusion_core.sampling.declaration import families_table, methods_table, samplers_table  # noqa: E402

PAGES = (ROOT / "docs" / "methods.md", ROOT / "docs" / "exercises.md", ROOT / "docs" / "few_steps.md")


def _families() -> str:
    """Return the table of families, with the configurations that deviate from their defaults."""
    files = sorted((ROOT / "configs" / "sampler").glob("*.yaml"))
    return families_table({file.stem: yaml.safe_load(file.read_text()) for file in files})


def _exercises() -> str:
    """Return the table of exercises."""
    from duet.exercises import EXERCISES

    rows = [
        f"| `{name}` | {exercise.title} | `{', '.join(exercise.parameters)}` | {len(exercise.mistakes)} |"
        for name, exercise in EXERCISES.items()
    ]
    return "\n".join(["| exercise | what to write | arguments | usual mistakes |", "| --- | --- | --- | --- |", *rows])


def _targets() -> str:
    """Return the table of training methods whose targets need the network."""
    from diffusion_core.training.targets import METHODS

    lines = ["| objective | method | source | code | teacher | sampler |", "| --- " * 6 + "|"]
    for name, one in METHODS.items():
        teacher = "yes" if one.needs_teacher else "its start" if one.takes_teacher else ""
        lines.append(
            f"| `{name}` | {one.title} | [{one.paper}]({one.url}) | {one.code} | {teacher} | `{one.sampler}` |"
        )
    return "\n".join(lines)


def _optimisers() -> str:
    """Return the table of optimisers, with their options and what they keep for a matrix."""
    from dataclasses import fields

    from diffusion_core.optim import OPTIMISERS, Role

    lines = ["| optimiser | what | options | kept for a matrix |", "| --- " * 4 + "|"]
    matrix = Role("", (3, 2), "matrix", True)
    for name, kind in OPTIMISERS.items():
        what = kind.__doc__.partition("\n")[0].rstrip(".")
        options = ", ".join(f"`{f.name}`" for f in fields(kind) if f.name not in ("weight_decay", "clip"))
        kept = ", ".join(f"`{slot}`" for slot in kind().slots(matrix))
        lines.append(f"| `{name}` | {what} | {options} | {kept} |")
    return "\n".join(lines)


def _few_steps() -> str:
    """Return the table of distances by number of evaluations."""
    return runpy.run_path(str(ROOT / "docs" / "few_steps.py"))["table"]()


TABLES = {
    "targets": _targets, "families": _families, "samplers": samplers_table, "methods": methods_table,
    "exercises": _exercises, "optimisers": _optimisers, "few_steps": _few_steps,
}  # fmt: skip


def updated(text: str) -> str:
    """Return the page with every generated table replaced by the present one."""
    import diffusion_core.sampling  # noqa: F401  (collects the declarations)

    for name, table in TABLES.items():
        pattern = rf"(<!-- generated: {name} -->\n).*?(\n<!-- end -->)"
        text = re.sub(pattern, lambda match, table=table: match[1] + table() + match[2], text, flags=re.DOTALL)
    return text


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(updated(page.read_text()))
