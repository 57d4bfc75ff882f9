"""When ``compile: auto`` compiles."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from commands import composed

from diffusion_core.backend.compile_policy import should_compile
from diffusion_core.common.errors import DuetError
from experiments.config import build


def test_auto_compiles_beyond_a_number_of_calls():
    assert [should_compile("auto", calls, 400) for calls in (0, 400, 401, 10**9)] == [False, False, True, True]
    assert not should_compile("auto", 10**9, None)


@pytest.mark.parametrize("requested", [True, False])
def test_true_and_false_are_obeyed(requested):
    for calls, compile_after, resumed in ((0, None, None), (10**9, 0, None), (10**9, 0, not requested)):
        assert should_compile(requested, calls, compile_after, resumed) is requested


@pytest.mark.parametrize("resumed", [True, False])
def test_auto_keeps_the_choice_of_the_resumed_run(resumed):
    for calls, compile_after in ((0, None), (0, 400), (10**9, 0)):
        assert should_compile("auto", calls, compile_after, resumed) is resumed


@pytest.mark.parametrize("requested", ["yes", "xla", 1, None])
def test_any_other_value_is_refused_in_one_line(requested):
    with pytest.raises(DuetError, match=r"^backend\.compile: .* was given; it must be one of auto, true, false"):
        should_compile(requested, 0, None)


@pytest.mark.parametrize("on_cpu", [True, False])
@pytest.mark.parametrize("name", ["torch", "tf"])
def test_a_configured_limit_decides_on_its_own_device(name, on_cpu):
    backend = SimpleNamespace(
        describe=lambda: SimpleNamespace(on_cpu=on_cpu),
        config=SimpleNamespace(compile=False),
        in_mode=lambda compile: "compiled",
        compile_obstacle=lambda: None,
    )
    cfg = composed("train", f"backend={name}")
    setup, limit = build.backend_setup(cfg), cfg.backend.compile_after["cpu" if on_cpu else "cuda"]
    assert (limit is None) == (name == "torch" and on_cpu)
    if limit is None:
        assert setup.choose_mode(backend, 10**9) is backend
    else:
        assert setup.choose_mode(backend, limit) is backend and setup.choose_mode(backend, limit + 1) == "compiled"
