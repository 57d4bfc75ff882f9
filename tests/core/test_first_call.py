"""The first call of a compiled function is announced, and an error of its compiler is one line."""

from __future__ import annotations

import sys
from threading import Event

import pytest

from diffusion_core.backend import first_call
from diffusion_core.backend.first_call import FirstCall
from diffusion_core.common.errors import DuetError
from diffusion_core.runtime.heartbeat import Ticker, heartbeat


class CompilerError(RuntimeError):
    """What the compiler of this test raises."""


def explain(error: Exception) -> str | None:
    return str(error).splitlines()[0] if isinstance(error, CompilerError) else None


@pytest.fixture(autouse=True)
def unannounced(monkeypatch):
    monkeypatch.setattr(first_call, "_announced", set())


def test_only_the_first_compilation_of_a_process_is_announced_at_once(capsys):
    one, two = (FirstCall(lambda x, k=k: x + k, "XLA", explain) for k in (1, 2))
    assert [one(1), one(2), two(1)] == [2, 3, 3]
    first, last = capsys.readouterr().out.splitlines()
    assert first == "compiling with XLA ..." and last.startswith("compiling with XLA: done in ")


def test_tracing_is_announced_only_if_it_takes_long(capsys):
    assert FirstCall(abs, None, explain)(-1) == 1
    assert capsys.readouterr().out == ""


def test_a_call_that_takes_long_is_not_silent(capsys, monkeypatch):
    monkeypatch.setattr(first_call, "EVERY_SECONDS", 0.01)
    told = Event()
    monkeypatch.setattr(sys.stdout, "flush", told.set)
    assert FirstCall(lambda: told.wait(60), None, explain)()
    assert "tracing the network: " in capsys.readouterr().out


def test_an_error_of_the_compiler_is_one_line_that_says_what_to_do():
    def fails(x):
        raise CompilerError("no ptxas\nand a long explanation")

    with pytest.raises(DuetError) as caught:
        FirstCall(fails, "XLA", explain)(1)
    reason = "backend.compile: true was given, but XLA failed (no ptxas); or set backend.compile=false"
    assert str(caught.value) == reason


def test_other_errors_pass_through():
    def fails(x):
        raise KeyError(x)

    with pytest.raises(KeyError):
        FirstCall(fails, "XLA", explain)(1)


def test_the_attributes_are_those_of_the_function():
    assert FirstCall("text".upper, "XLA", explain).__self__ == "text"


def test_of_nested_signs_of_life_only_the_innermost_prints(capsys):
    ticks, told = [], Event()
    with Ticker(lambda: ticks.append(1), 0.001), Ticker(told.set, 0.001):
        assert told.wait(60)
        outer = len(ticks)
        told.clear()
        assert told.wait(60)
        assert len(ticks) == outer


def test_a_heartbeat_that_ends_soon_prints_nothing(capsys):
    with heartbeat("reading", every=60.0):
        pass
    assert capsys.readouterr().out == ""
