"""Diffusion models that train and sample in several frameworks with the same numbers.

Importing this package loads nothing else: a public name is imported from its module when it is first used.
`python3 -m duet --help` lists the commands; `duet.cli` holds them and needs the standard library only.
"""
# This file and __main__.py must parse in any Python, so that an old one gets one clear line.

import importlib

# Public name: the module that defines it.
_PUBLIC = {"DuetError": "diffusion_core.common.errors"}

__all__ = list(_PUBLIC)


def __getattr__(name):
    if name not in _PUBLIC:
        raise AttributeError("module 'duet' has no attribute %r" % name)  # noqa: UP031
    value = getattr(importlib.import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted(set(globals()) | set(_PUBLIC))
