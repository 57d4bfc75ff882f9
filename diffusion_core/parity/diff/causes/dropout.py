"""Causes in dropout: on where it should be off, and its scale."""

from __future__ import annotations

from collections.abc import Iterator

from diffusion_core.parity.diff.causes.change import Change, Suspect, cause
from diffusion_core.parity.diff.causes.view import shown, view

_JOINING = ("multiply", "divide", "where", "add")


@cause(
    "dropout_on",
    "dropout, or noise, that is on for one side only",
    "model.eval() in torch; training=False in Keras, also where a layer is called with training=True",
)
@cause(
    "dropout_scale", "the scale of dropout", "both frameworks divide by 1 - rate while training, and do nothing later"
)
def dropout(suspect: Suspect) -> Iterator[Change]:
    """Leave out what depends on random numbers."""
    here = view(suspect)
    random: set[int] = set()
    for i, operation in enumerate(here.graph.operations):
        if operation.kind == "random" or any(n in random for n in operation.inputs):
            if operation.kind != "random" and not any(n in random for n in operation.inputs):
                continue
            random.update(operation.outputs)
        if i not in suspect.region:
            continue
        if operation.kind not in _JOINING or not any(n in random for n in operation.inputs):
            continue
        y = here.output(i)
        plain = [n for n in operation.inputs if n not in random and (x := here.number(n)) is not None and y is not None
                 and x.shape == y.shape]  # fmt: skip
        for n in plain:
            before = [n]
            maker = here.graph.producer.get(n)
            if maker is not None and here.graph.operations[maker].kind in ("multiply", "divide"):
                before += [m for m in here.graph.operations[maker].inputs if (x := here.number(m)) is not None
                           and x.shape == y.shape]  # type: ignore[union-attr] # fmt: skip
            for m in before:
                yield Change(
                    "dropout_on",
                    i,
                    lambda read, m=m: (read(m),),
                    "dropout or noise is on",
                    "dropout or noise is off",
                    0,
                )
            # What follows may still scale by 1 / (1 - rate).
            for j in here.after(operation.outputs)[:3]:
                z = here.output(j)
                if here.graph.operations[j].kind in ("multiply", "divide") and z is not None and z.shape == y.shape:  # type: ignore[union-attr]
                    yield Change(
                        "dropout_on",
                        j,
                        lambda read, n=n: (read(n),),
                        "dropout or noise is on",
                        "dropout or noise is off",
                        0,
                    )
    for i, operation in here.operations:
        y = here.output(i)
        number = operation.attributes.get("scalar")
        if (
            operation.kind not in ("multiply", "divide")
            or y is None
            or not isinstance(number, int | float)
            or not number
        ):
            continue
        for rate in (0.1, 0.2, 0.25, 0.3, 0.4, 0.5, 0.05, 0.15):
            kept = 1 - rate
            if any(abs(number - x) < 1e-12 for x in (kept, 1 / kept)):
                n = operation.inputs[0]
                yield Change(
                    "dropout_scale",
                    i,
                    lambda read, n=n: (read(n),),
                    f"the factor is {shown(float(number))}",
                    "no factor is there",
                )
