"""The folder that a mistyped path may mean."""

from __future__ import annotations

import difflib
from pathlib import Path

__all__ = ["similar_path"]


def similar_path(path: str | Path) -> str:
    """Return a sentence that offers the file or folder whose name is most like that of a path, or nothing.

    Only the last part of a path that does not exist, or the first one of it that does not, may be mistyped.

    Example:
        >>> similar_path(Path(__file__).with_name("path.py")).endswith("paths.py'?")
        True
    """
    path = Path(path)
    missing = [part for part in (path, *path.parents) if not part.exists()]
    if not missing:
        return ""
    first = missing[-1]
    try:
        names = sorted(entry.name for entry in first.parent.iterdir())
    except OSError:
        return ""
    rest = path.relative_to(first)
    for name in difflib.get_close_matches(first.name, names, n=3):
        if (found := first.parent / name / rest).exists():
            return f". Did you mean {str(found)!r}?"
    return ""
