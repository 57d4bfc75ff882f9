"""The error for mistakes of a user, and its wording.

Every message says what was given and what is allowed. A command prints it as one line and exits with code 2; every
other exception is a defect of Duet and keeps its traceback.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping

from diffusion_core.common.synonyms import VALUES

__all__ = ["DuetError", "OutOfMemory", "check_choice", "name_arguments", "name_keys", "one_of", "out_of_memory_error"]

# `trainer.batch` in a message is a configuration key; in Python it is the argument `batch`. A file such as model.npz is
# neither.
_GROUPS = "trainer|process|sampler|sample|model|optimiser|lr|ema|data|backend|mode|network_call"
_SUFFIXES = "npz|npy|pt|pth|ckpt|bin|safetensors|onnx|json|jsonl|yaml|png|zip|pkl|h5|keras"
_KEY = re.compile(rf"(?<![\w./-])(?:{_GROUPS})\.(?:options\.)?(?!(?:{_SUFFIXES})\b)(?=[a-z_])")
_NAME = re.compile(r"(?<![\w./-])(sampler|schedule|ema|split|features|tracker)\.name\b")
_names_arguments = False


def name_arguments() -> None:
    """Let messages name arguments, as `batch`, from now on; `import duet` calls this when it is used."""
    global _names_arguments
    _names_arguments = True


def name_keys() -> None:
    """Let messages name configuration keys, as `trainer.batch`, from now on; this is the default."""
    global _names_arguments
    _names_arguments = False


class DuetError(ValueError):
    """A value, option or file that Duet cannot use; the message names it and what is allowed.

    The message is written with configuration keys, such as ``trainer.batch``. In a program that uses `import duet` it
    reads ``batch``; see `name_arguments`.

    Characters that cannot be printed, line ends among them, are written as escapes, since messages quote names that
    stand in files.
    """

    def __init__(self, message: str) -> None:
        super().__init__("".join(c if c.isprintable() else repr(c)[1:-1] for c in str(message)))

    def __str__(self) -> str:
        message = str(self.args[0])
        return _KEY.sub("", _NAME.sub(r"\1", message)) if _names_arguments else message


class OutOfMemory(DuetError):
    """The device has too little memory; the call that failed changed nothing and may be tried again."""


def out_of_memory_error(device: str, reason: object, changes: bool = False) -> DuetError:
    """Return the error for a device with too little memory.

    Args:
        device: its name.
        reason: the message of the framework, whose first line is quoted.
        changes: whether the call may have changed something before it failed and must not be tried again. The error is
            an `OutOfMemory` if not.
    """
    quoted = next(iter(str(reason).strip().splitlines()), "")[:200]
    after = "; an update may be incomplete: continue from the last checkpoint with resume=latest" if changes else ""
    return (DuetError if changes else OutOfMemory)(
        f"{device}: out of memory; compute fewer images at a time with trainer.micro_batch (or let "
        f"trainer.on_out_of_memory=halve find how many), draw fewer with sample.batch and evaluate fewer with "
        f"validation.batch, loss.batch, likelihood.batch or accuracy.batch{after} ({quoted})"
    )


def check_choice(what: str, given: object, allowed: Iterable[object]) -> None:
    """Raise the error of `one_of` for a value that is none of the allowed ones.

    Args:
        what: the configuration key.
        given: its value.
        allowed: its values.

    Example:
        >>> check_choice("optimiser.decay", "l2", ("decoupled", "l2"))
    """
    if given not in (allowed := tuple(allowed)):
        raise one_of(what, given, allowed)


def one_of(what: str, given: object, allowed: Iterable[object], synonyms: Mapping[str, str] | None = None) -> DuetError:
    """Return the error for a name that is not among the `allowed` ones; it suggests the most similar name.

    Args:
        what: what the name stands for, as in "schedule".
        given: the unknown name.
        allowed: the known names.
        synonyms: allowed names by other words for them, in lower case; `synonyms.VALUES` has those of the key `what`.

    Example:
        >>> print(one_of("lr.decay", "cosin", ["linear", "cosine"]))
        lr.decay: 'cosin' was given; it must be one of linear, cosine. Did you mean 'cosine'?
        >>> print(one_of("data", "Image-Folder", ["digits", "image_folder"]))
        data: 'Image-Folder' was given; it must be one of digits, image_folder. Did you mean 'image_folder'?
    """
    names = [str(name) for name in allowed]
    if not names:
        return DuetError(f"{what}: {given!r} was given; there is none, so leave it out")
    near = _nearest(str(given), names, {**VALUES.get(what.removesuffix(".name"), {}), **(synonyms or {})})
    hint = f" Did you mean {near!r}?" if near else ""
    return DuetError(f"{what}: {given!r} was given; it must be one of {', '.join(names)}.{hint}")


def _nearest(given: str, names: list[str], synonyms: Mapping[str, str]) -> str | None:
    """Return the name that is meant: that of Duet for another library's, or the most similar one.

    Neither case nor the characters between words count.
    """

    def simplified(name: str) -> str:
        return re.sub(r"[\s_./-]+", "_", name.casefold())

    for word in (given.casefold(), simplified(given)):
        if synonyms.get(word) in names:
            return synonyms[word]
    by_simplified = {simplified(name): name for name in reversed(names)}
    near = difflib.get_close_matches(simplified(given), by_simplified, n=1)
    return by_simplified[near[0]] if near else None
