"""How `duet diff` calls a model: its inputs in order, by name or in one argument; and what a function is."""

from __future__ import annotations

import functools

import numpy as np
import pytest

import duet
from diffusion_core.common.errors import DuetError
from experiments.model_diff.author_code import Refused, describe_error, is_builder, packages_used, to_inputs
from experiments.model_diff.call_forms import arrays_in, call_forms, how_named, takes_nothing

X, T = np.ones((2, 3)), np.ones(2)


class Model:
    """A model whose function has these arguments."""

    def __init__(self, function):
        self.forward = function

    def __call__(self, *args, **kwargs):
        return self.forward(*args, **kwargs)


TWO = Model(lambda x, t: x)
ONE = Model(lambda batch: batch)
KERAS = Model(lambda inputs, training=None, mask=None: inputs)
ANY = Model(lambda **batch: batch)


def test_inputs_go_by_name_where_the_model_has_these_arguments_and_else_in_order():
    named = {"t": T, "x": X}
    assert call_forms(TWO, named) == [named] and call_forms(ANY, named) == [named]
    assert call_forms(TWO, (X, T)) == [(X, T)]
    in_order, in_one = call_forms(TWO, {"sample": X, "time": T})
    assert in_order == (X, T) and in_one == ({"sample": X, "time": T},)


def test_several_inputs_of_a_model_with_one_argument_are_given_in_one():
    for model in (ONE, KERAS):
        assert call_forms(model, {"a": X, "b": T})[0] == ({"a": X, "b": T},)
        assert call_forms(model, (X, T))[0] == ([X, T],)
        assert call_forms(model, (X,)) == [(X,)]
    assert [array.shape for array in arrays_in(({"a": X}, [T], {"b": (X, T)}))] == [(2, 3), (2,), (2, 3), (2,)]


def test_a_name_too_many_is_refused():
    with pytest.raises(Refused, match="no argument 'more'; its arguments are x, t"):
        call_forms(TWO, {"x": X, "tt": T, "more": T})


def test_names_of_the_other_side_go_to_the_arguments_that_are_left():
    (given,) = call_forms(TWO, {"time": T, "x": X})
    assert given == {"t": T, "x": X}
    assert how_named({"time": T, "x": X}, given) == ["the model has other arguments: 'time' was given as 't'"]
    assert how_named({"x": X}, {"x": X}) == []


def test_a_model_of_no_inputs_needs_none():
    assert takes_nothing(Model(lambda: 1)) and not takes_nothing(TWO) and not takes_nothing(np.tanh)
    assert duet.diff(Model(lambda: np.ones(3)), Model(lambda: np.ones(3) * 1.0)).equal
    assert not duet.diff(Model(lambda: np.ones(3)), Model(lambda: np.full(3, 2.0)), inputs=()).equal


def test_the_one_argument_may_be_a_dictionary():
    def net(batch):
        return {"y": 2 * batch["x"], "z": batch["x"] + batch["c"]}

    inputs = {"x": X, "c": np.array(2.0)}
    for given in (inputs, (inputs,)):
        assert to_inputs(given, "inputs").keys() == inputs.keys()
        assert duet.diff(net, lambda batch: {"z": batch["c"] + batch["x"], "y": batch["x"] * 2}, inputs=given).equal


def test_what_wraps_a_model_is_no_function_that_returns_one():
    @functools.wraps(ONE)
    def wrapped(*args, **kwargs):
        return ONE(*args, **kwargs)

    assert not is_builder(wrapped, {}) and not is_builder(functools.partial(TWO.forward, t=T), {})
    assert is_builder(functools.partial(lambda width: ONE, width=2), {})


def helper(x):
    return np.tanh(x)


def test_what_a_function_uses_is_found_in_the_functions_that_it_calls():
    assert "numpy" in packages_used(lambda x: helper(x)) and "numpy" not in packages_used(lambda x: x)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (lambda x: 1 / 0, "A: .*ZeroDivisionError: division by zero .*test_call_forms.py, line"),
        (lambda x: None, "A: .*returned .*None.*; it must return"),
        ([1, 2], "A: list: this is list; it must be a model, or a function that returns one"),
        (lambda x: "text", "A: .*returned .*str"),
    ],
)
def test_what_goes_wrong_in_an_object_is_one_line(model, said):
    with pytest.raises(DuetError, match=said) as error:
        duet.diff(model, np.tanh, inputs=X)
    assert "\n" not in str(error.value) and error.value.__cause__ is not None


def test_a_message_of_several_lines_becomes_its_line_of_substance():
    said = "no shape for [[1. 2.\n 3. 4.]]. Expected 4"
    text = f"Exception encountered when calling Net.call().\n\n\x1b[1m{said}\x1b[0m\n\nArguments received"
    assert describe_error("net", ValueError(text))[0].endswith("ValueError: no shape for [...]. Expected 4")


def test_names_that_the_model_does_not_have_are_told():
    report = duet.diff(lambda x: np.tanh(x), np.tanh, inputs={"sample": X})
    assert any("names of the inputs sample: they were given in order" in note for note in report.comparison.notes)


def test_files_without_numbers_are_refused(tmp_path):
    np.savez(tmp_path / "empty.npz", np.zeros((0, 3)))
    (tmp_path / "text.npz").write_text("text")
    for name, said in (("empty", "no numbers"), ("text", r"must be an .npz file of arrays$")):
        with pytest.raises(DuetError, match=said):
            duet.diff(np.tanh, np.tanh, inputs=tmp_path / f"{name}.npz")


def test_inputs_that_are_no_arrays_are_refused():
    with pytest.raises(DuetError, match=r"inputs.* has the type object"):
        duet.diff(np.tanh, np.tanh, inputs=[None])


def test_a_plain_function_says_once_what_it_has_not():
    report = duet.diff(np.tanh, np.tanh, inputs=X)
    assert report.equal and sum("training mode" in note for note in report.comparison.notes) == 1
    assert all(note.startswith("A and B: ") for note in report.comparison.notes)


def test_outputs_of_complex_numbers_have_a_report():
    report = duet.diff(np.fft.fft, lambda x: 2 * np.fft.fft(x), inputs=X)
    assert not report.equal and report.summary()
