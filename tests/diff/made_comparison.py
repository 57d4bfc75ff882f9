"""A comparison as `diffusion_core.parity.diff.comparison` makes one, with numbers of no model."""

from __future__ import annotations

import re

import numpy as np

from diffusion_core.parity.diff.findings import Comparison, Finding, Place, Row

__all__ = ["comparison", "is_sentence", "norm_epsilon"]


# Words that leave out who does something, or what is compared; and the verbs of the sentences that are written.
_NO_SUBJECT = (
    "adds", "applies", "at", "by", "computes", "cuts", "divides", "does", "in", "it", "its", "multiplies", "none",
    "not", "once", "over", "pads", "subtracts", "takes", "times", "twice", "uses", "with", "without",
)  # fmt: skip
_VERB = re.compile(
    r" (is|are|has|have|come|comes|begin|begins|stand|stands|runs|includes|leaves|adds|puts|starts|copies|move|moves|"
    r"decays|decay|follow|follows|passes|pass|shrink|multiplies|counts)\b"
)


def is_sentence(words: str) -> bool:
    """Return whether words about one side have a subject and a verb, and are no bare number."""
    first = words.split(" ")[0]
    return first not in _NO_SUBJECT and not first[:1].isdigit() and _VERB.search(words) is not None


def norm_epsilon(**changes: object) -> Finding:
    """Return a verified finding of the forward pass."""
    fields = {
        "mode": "forward",
        "kind": "norm_epsilon",
        "status": "verified",
        "title": "the epsilon of a normalisation",
        "a": Place("down.0.norm1", "torch_model.py:52", "h = self.norm1(x)", "aten.native_group_norm", "group_norm"),
        "b": Place("enc0_norm1", "keras_model.py:88", "h = GroupNormalization(8)(x)", "Mul", "group_norm"),
        "a_does": "epsilon is 1e-05",
        "b_does": "epsilon is 0.001",
        "error": 3.1e-3,
        "left": 2.4e-16,
        "advice": "eps= in PyTorch, epsilon= in Keras; the defaults are 1e-5 and 1e-3",
        "also": ("up.0.norm1 (torch_model.py:61) and dec0_norm1 (keras_model.py:95)",),
    }
    return Finding(**{**fields, **changes})


def comparison(*findings: Finding, rows: int = 60, **changes: object) -> Comparison:
    """Return a comparison with these findings, the first of them a third of the way through the network."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 3, 8, 8))
    made = []
    for i in range(rows):
        layer, at = f"down.{i // 12}.block{i // 4}", i == rows // 3
        differs = bool(findings) and i >= rows // 3
        kind = ("conv", "mean", "divide", "silu")[i % 4]
        made.append(
            Row(
                Place(layer, f"torch_model.py:{20 + i // 2}", "h = self.block(x)", f"aten.{kind}", kind),
                Place(layer.replace(".", "_"), f"keras_model.py:{31 + i // 2}", "h = block(x)", kind.title(), kind),
                (2, 16, 8, 8),
                3.1e-3 if at and findings else float(10 ** rng.uniform(-16.5, -15.5)),
                float(10 ** rng.uniform(-3, -1)) if differs else float(10 ** rng.uniform(-16, -15)),
                float(10 ** rng.uniform(-7.3, -6.3)),
                "channels last",
                0 if at and findings else None,
            )
        )
    y = np.moveaxis(x, 1, -1) * (1.02 if findings else 1)
    fields = {
        "a": "torch_model.py:build",
        "b": "keras_model.py:build",
        "frameworks": ("torch 2.14.1", "tensorflow 2.21.0, keras 3.15.1"),
        "findings": findings,
        "rows": tuple(made),
        "outputs": {"0": {"float64": 0.019 if findings else 3e-16, "float32": 0.019 if findings else 4e-7}},
        "histograms": {"0": (x, y)},
        "parameters": (("down.0.norm1.weight", "enc0_norm1/gamma", "the same"),),
        "unmatched": (("down.0.unused",), ()),
        "compared": {"forward": "1 difference" if findings else "equal to rounding"},
        "notes": ("A: two passes with the same inputs differ",),
    }
    return Comparison(**{**fields, **changes})
