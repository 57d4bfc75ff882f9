"""A table of translations: how each operation of a framework is written in the vocabulary."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

__all__ = ["Translations"]

Translation = TypeVar("Translation", bound=Callable)


class Translations(dict[str, Callable]):
    """Functions by the framework's name of an operation, filled by a decorator: ``@TRANSLATIONS.register("Add")``."""

    def register(self, *names: str) -> Callable[[Translation], Translation]:
        """Register a function as the translation of operations of these names."""

        def enter(function: Translation) -> Translation:
            self.update(dict.fromkeys(names, function))
            return function

        return enter
