"""Write the generated tables of docs/methods.md from what the samplers declare: python docs/update_tables.py

A generated table stands between the lines ``<!-- generated: NAME -->`` and ``<!-- end -->``.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from diffusion_core.sampling.declaration import families_table, methods_table, samplers_table  # noqa: E402

PAGE = ROOT / "docs" / "methods.md"


def _families() -> str:
    """Return the table of families, with the configurations that deviate from their defaults."""
    files = sorted((ROOT / "configs" / "sampler").glob("*.yaml"))
    return families_table({file.stem: yaml.safe_load(file.read_text()) for file in files})


TABLES = {"families": _families, "samplers": samplers_table, "methods": methods_table}


def updated(text: str) -> str:
    """Return the page with every generated table replaced by the present one."""
    import diffusion_core.sampling  # noqa: F401  (collects the declarations)

    for name, table in TABLES.items():
        pattern = rf"(<!-- generated: {name} -->\n).*?(\n<!-- end -->)"
        text = re.sub(pattern, lambda match, table=table: match[1] + table() + match[2], text, flags=re.DOTALL)
    return text


if __name__ == "__main__":
    PAGE.write_text(updated(PAGE.read_text()))
