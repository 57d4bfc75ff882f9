"""Reads the docstrings of this project for the API pages, in the words of the site's parser."""

from __future__ import annotations

import re
from textwrap import dedent
from textwrap import indent as indent_lines
from typing import Any

from griffe import Extension, Function, Object

BLOCK = r"^( *)(.*)::\n\n((?:\1 {4}.*\n?|\s*\n)+)"  # a line that ends with ::, and what is indented below it


class Docstrings(Extension):
    """Turns conventions of plain docstrings into those of the parser.

    `Example:` holds examples, of Python; `::` ends a line of text before a block; the `Args:` of a named tuple are its
    attributes; a line of `References:` is one reference, or continues one.
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
            before, title, examples = text.partition("Examples:\n")
            text = before + title + re.sub(BLOCK, fenced, examples, flags=re.MULTILINE)
            text = re.sub(r"^( *)References:\n((?:\1 +.*\n?)+)", itemised, text, flags=re.MULTILINE)
            obj.docstring.value = re.sub(r"::$", ":", text, flags=re.MULTILINE)


def heading(text: str, former: str, new: str) -> str:
    """Rename a section of a docstring."""
    return re.sub(rf"^(\s*){former}:$", rf"\1{new}:", text, flags=re.MULTILINE)


def fenced(example: re.Match[str]) -> str:
    """Return a line and its block of code with the language of the block."""
    indent, line, code = example[1], example[2], indent_lines(dedent(example[3]).strip(), example[1])
    return f"{indent}{line}:\n\n{indent}```python\n{code}\n{indent}```\n\n"


def itemised(section: re.Match[str]) -> str:
    """Return a section of references as a list."""
    items: list[str] = []
    for line in map(str.strip, section[2].strip().splitlines()):
        if items and (items[-1].endswith(",") or ("://" not in items[-1] and line[0].islower())):
            items[-1] += f" {line}"
        else:
            items.append(line)
    return f"{section[1]}References:\n" + "".join(f"{section[1]}    - {item}\n" for item in items)
