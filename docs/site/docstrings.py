"""Reads the docstrings of this project for the API pages, in the words of the site's parser."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Function, Object


class Docstrings(Extension):
    """Turns four conventions of plain docstrings into those of the parser.

    `Example:` holds examples; `::` ends a line of text before a block; the `Args:` of a named tuple are its attributes;
    a line of `References:` is one, or continues one that was not finished.
    """

    def on_function(self, *, func: Function, **others: Any) -> None:
        """Give a function with overloads the parameters of all of them, which its docstring describes."""
        for overload in func.overloads or ():
            for parameter in overload.parameters:
                if parameter.name not in func.parameters:
                    func.parameters.add(parameter)

    def on_object(self, *, obj: Object, **others: Any) -> None:
        """Rewrite the docstring of an object before it is parsed."""
        if obj.docstring:
            text = heading(obj.docstring.value, "Example", "Examples")
            if obj.is_class and any(str(base).endswith("NamedTuple") for base in obj.bases):
                text = heading(text, "Args", "Attributes")
            text = re.sub(r"^( *)References:\n((?:\1 +.*\n?)+)", itemised, text, flags=re.MULTILINE)
            obj.docstring.value = re.sub(r"::$", ":", text, flags=re.MULTILINE)


def heading(text: str, former: str, new: str) -> str:
    """Rename a section of a docstring."""
    return re.sub(rf"^(\s*){former}:$", rf"\1{new}:", text, flags=re.MULTILINE)


def itemised(section: re.Match[str]) -> str:
    """Return a section of references as a list."""
    items: list[str] = []
    for line in map(str.strip, section[2].strip().splitlines()):
        if items and (items[-1].endswith(",") or ("://" not in items[-1] and line[0].islower())):
            items[-1] += f" {line}"
        else:
            items.append(line)
    return f"{section[1]}References:\n" + "".join(f"{section[1]}    - {item}\n" for item in items)
