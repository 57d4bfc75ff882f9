"""`duet.check`: right solutions are right, every usual mistake is named by its own name, and the answers say why."""

from __future__ import annotations

import re
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from exercise_solutions import SOLUTIONS

import duet
from diffusion_core.common.errors import DuetError
from duet.exercises import EXERCISES, Exercise, add, check, distance, exercise
from duet.exercises.frameworks import FRAMEWORKS, find_frameworks

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

MISTAKES = [(name, mistake) for name, chosen in EXERCISES.items() for mistake in chosen.mistakes]


@pytest.mark.parametrize("name", EXERCISES)
def test_a_right_solution_is_right(name):
    result = check(name, SOLUTIONS[name])
    assert result, result
    assert result.largest_error < 1e-11 and not result.mistakes and result.problem is None


@pytest.mark.parametrize("name", EXERCISES)
def test_a_right_solution_in_float32_is_right_to_its_rounding(name):
    result = check(name, SOLUTIONS[name], dtype="float32")
    assert result and "float32" in repr(result), result


@pytest.mark.parametrize(("name", "mistake"), MISTAKES, ids=[f"{name}-{mistake.name}" for name, mistake in MISTAKES])
def test_every_wrong_solution_is_named_by_its_own_mistake(name, mistake):
    layout = "channels_first" if mistake.name == "channels_last" else "channels_last"
    for solution in mistake.solutions:
        wrong = solution if layout == "channels_last" else _in_the_other_layout(solution)
        result = check(name, wrong, layout=layout)
        assert not result and result.mistakes == (mistake.name,), result
        assert mistake.name in repr(result)


def _in_the_other_layout(solution):
    """Return a solution for b h w c as one for b c h w."""
    return lambda x, *rest: np.moveaxis(solution(np.moveaxis(x, 1, -1), *rest), -1, 1)


@pytest.mark.parametrize("name", EXERCISES)
def test_an_exercise_states_its_signature_shapes_laws_and_source(name):
    chosen = exercise(name)
    text = repr(chosen)
    assert isinstance(chosen, Exercise) and f"{name}({', '.join(chosen.parameters)})" in text
    assert all(parameter in chosen.statement for parameter in chosen.parameters)
    assert "shape" in chosen.statement and "http" in chosen.source and len(chosen.laws) >= 1
    assert len(chosen.mistakes) >= 3 and max(map(len, text.splitlines())) <= 125


@pytest.mark.parametrize("name", EXERCISES)
def test_every_law_is_broken_by_some_usual_mistake(name):
    chosen, broken = EXERCISES[name], set()
    for mistake in chosen.mistakes:
        layout = "channels_first" if mistake.name == "channels_last" else "channels_last"
        if layout == "channels_last":
            broken |= set(check(name, mistake.solutions[0], layout=layout).broken_laws)
    assert broken == {law.sentence for law in chosen.laws}


def test_at_least_sixteen_exercises_are_listed():
    assert len(EXERCISES) >= 16 and set(SOLUTIONS) == set(EXERCISES)
    assert check().keys() == exercise().keys() == EXERCISES.keys()
    assert all(name in repr(check()) and EXERCISES[name].title in repr(check()) for name in EXERCISES)


# --- wrong solutions as students write them ------------------------------------------------------------------------


def ddim_with_last_entry(x, eps, t, s, alpha_bar):
    x0 = (x - np.sqrt(1 - alpha_bar[t]) * eps) / np.sqrt(alpha_bar[t])
    return np.sqrt(alpha_bar[s]) * x0 + np.sqrt(1 - alpha_bar[s]) * eps


def ddpm_with_noise_at_the_end(x, eps, z, t, betas):
    alphas = 1 - betas
    alpha_bar = np.cumprod(alphas)
    mean = 1 / np.sqrt(alphas[t]) * (x - (1 - alphas[t]) / np.sqrt(1 - alpha_bar[t]) * eps)
    return mean + np.sqrt(betas[t]) * z


def noise_without_roots(x0, eps, t, alpha_bar):
    a = alpha_bar[t].reshape((-1,) + (1,) * (x0.ndim - 1))
    return a * x0 + (1 - a) * eps


def noise_without_reshape(x0, eps, t, alpha_bar):
    return np.sqrt(alpha_bar[t]) * x0 + np.sqrt(1 - alpha_bar[t]) * eps


def guidance_of_the_other_convention(cond, uncond, w):
    return cond + w * (cond - uncond)


def norm_of_the_other_layout(x, weight, bias, groups, eps):
    y = x.reshape(len(x), groups, -1)
    y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + eps)
    return y.reshape(x.shape) * weight[:, None, None] + bias[:, None, None]


def adam_of_keras(p, g, m, v, k, lr, beta1, beta2, eps, weight_decay):
    p = p - lr * weight_decay * p
    m, v = m + (g - m) * (1 - beta1), v + (g * g - v) * (1 - beta2)
    rate = lr * np.sqrt(1 - beta2**k) / (1 - beta1**k)
    return p - rate * m / (np.sqrt(v) + eps), m, v


def loss_with_sum(predict, x0, eps, t, alpha_bar):
    a = alpha_bar[t].reshape((-1,) + (1,) * (x0.ndim - 1))
    return ((predict(np.sqrt(a) * x0 + np.sqrt(1 - a) * eps, t) - eps) ** 2).sum()


STUDENTS = [
    ("ddim_step", ddim_with_last_entry, "last_entry_for_clean_data"),
    ("ddpm_step", ddpm_with_noise_at_the_end, "noise_at_last_step"),
    ("add_noise", noise_without_roots, "roots_forgotten"),
    ("add_noise", noise_without_reshape, "broadcast_over_last_axis"),
    ("guidance", guidance_of_the_other_convention, "weight_convention"),
    ("group_norm", norm_of_the_other_layout, "channels_first"),
    ("adam_step", adam_of_keras, "eps_inside_the_correction"),
    ("training_loss", loss_with_sum, "sum_for_mean"),
    ("posterior_variance", lambda betas: betas, "beta_for_beta_tilde"),
    ("self_attention", lambda x, q, k, v, o, heads: SOLUTIONS["self_attention"](x, q.T, k.T, v.T, o.T, heads),
     "weights_transposed"),
    ("time_embedding", lambda t, dim: np.roll(SOLUTIONS["time_embedding"](t, dim), dim // 2, axis=1), "cosine_first"),
    ("ema_update", lambda average, weights, decay: (1 - decay) * average + decay * weights, "decay_exchanged"),
]  # fmt: skip


def test_code_that_names_numpy_alone_is_called_with_numpy_alone(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", np)  # as if another part of the program used it
    assert [f.module for f in find_frameworks(lambda x: np.sqrt(x.var()))] == ["numpy"]
    assert [f.module for f in find_frameworks(lambda x: x.var())] == ["numpy", "torch"]


@pytest.mark.parametrize(("name", "function", "mistake"), STUDENTS, ids=[mistake for _, _, mistake in STUDENTS])
def test_a_mistake_in_the_words_of_a_student_is_named(name, function, mistake):
    result = check(name, function)
    assert not result and result.mistakes == (mistake,), result
    assert EXERCISES[name].mistake(mistake).sentence[:30] in repr(result)


def test_a_wrong_answer_shows_the_first_wrong_number_its_case_and_the_broken_law():
    result = check("ddim_step", ddim_with_last_entry)
    first = result.first_wrong
    case = EXERCISES["ddim_step"].cases[first.case]
    assert first.index == (0, 0, 0) and first.case.startswith("the last step")
    assert first.got == pytest.approx(ddim_with_last_entry(**case)[0, 0, 0], rel=1e-12)
    assert first.expected == pytest.approx(SOLUTIONS["ddim_step"](**case)[0, 0, 0], rel=1e-12)
    assert f"{first.got:.7g}; it must be {first.expected:.7g}" in repr(result)
    assert list(result.broken_laws) == ["The step to clean data, s = -1, returns the estimate of x_0."]
    assert result.broken_laws.popitem()[1] > 0.1 and "off by" in repr(result)


def test_the_factors_of_the_arguments_show_which_one_is_wrong():
    def step(x, eps, t, s, alpha_bar):
        return right(x, eps, t, s, alpha_bar) + 0.125 * eps

    case = EXERCISES["ddim_step"].cases["a step from t = 7 to s = 4"]
    bar, after = case["alpha_bar"][7], case["alpha_bar"][4]
    of_x = np.sqrt(after / bar)
    of_eps = np.sqrt(1 - after) - of_x * np.sqrt(1 - bar)
    shown = f"it is {of_x:.4g} x - {-of_eps - 0.125:.4g} eps; it must be {of_x:.4g} x - {-of_eps:.4g} eps"
    assert shown in " ".join(repr(check("ddim_step", step)).split())


def test_the_factors_are_those_of_the_image_where_they_differ():
    shown = " ".join(repr(check("add_noise", noise_without_roots)).split())
    alpha_bar = EXERCISES["add_noise"].cases["images with shape (4, 3, 2, 4) at t = 1, 3, 5, 8"]["alpha_bar"][1]
    assert f"for image 0 {alpha_bar:.4g} x0 + {1 - alpha_bar:.4g} eps; it must be {alpha_bar**0.5:.4g} x0" in shown


def test_no_factors_are_shown_for_what_is_no_sum_of_the_arguments():
    assert "As a sum" not in repr(check("kl_bits", lambda *a: 2 * SOLUTIONS["kl_bits"](*a)))
    assert "As a sum" not in repr(check("ddim_step", lambda *a: np.tanh(right(*a))))


def test_no_mistake_is_claimed_for_numbers_that_match_none():
    result = check("ddim_step", lambda x, eps, t, s, alpha_bar: SOLUTIONS["ddim_step"](x, eps, t, s, alpha_bar**1.1))
    assert not result and result.mistakes == () and "No usual mistake" in repr(result)
    assert result.problem == "numbers" and 0 < result.largest_error < np.inf


def test_two_mistakes_in_different_cases_are_both_named():
    def step(x, eps, z, t, betas):
        right = SOLUTIONS["ddpm_step"](x, eps, z, t, betas)
        return right + np.sqrt(betas[0]) * z if t == 0 else right - np.sqrt(betas[t]) * z + betas[t] * z

    result = check("ddpm_step", step)
    assert set(result.mistakes) == {"noise_at_last_step", "variance_for_deviation"}
    assert "In this case (the last step, from t = 0)" in repr(result)


# --- what can be wrong with any function ---------------------------------------------------------------------------


def right(x, eps, t, s, alpha_bar):
    return SOLUTIONS["ddim_step"](x, eps, t, s, alpha_bar)


def changing(x, eps, t, s, alpha_bar):
    result = right(x, eps, t, s, alpha_bar)
    eps *= 2
    return result


def raising(x, eps, t, s, alpha_bar):
    return unknown * x  # noqa: F821


def remembering(x, eps, t, s, alpha_bar, seen=[]):  # noqa: B006
    seen.append(t)
    return right(x, eps, t, s, alpha_bar) + len(seen)


PROBLEMS = [
    (
        lambda x, eps, t, s: x,
        "signature",
        "takes (x, eps, t, s); the exercise calls ddim_step(x, eps, t, s, alpha_bar)",
    ),
    (raising, "exception", "NameError: name 'unknown' is not defined"),
    (lambda x, eps, t, s, alpha_bar: None, "nothing", "return statement"),
    (lambda x, eps, t, s, alpha_bar: (x, eps), "results", "2 results; it must return 1"),
    (lambda x, eps, t, s, alpha_bar: x[0], "shape", "shape (3, 2); it must be (2, 3, 2)"),
    (lambda *a: right(*a).astype(np.float16), "dtype", "float16; it must be float64 or float32"),
    (lambda *a: right(*a).astype(np.int64), "dtype", "int64"),
    (lambda *a: right(*a) + 0j, "dtype", "complex128"),
    (lambda *a: "x", "shape", "shape ()"),
    (lambda *a: object(), "dtype", "It returns object."),
    (lambda *a: [[1], [1, 2]], "exception", "ValueError"),
    (lambda *a: np.array([]), "shape", "shape (0,)"),
    (lambda *a: np.where(np.arange(2) > 0, np.nan, 1.5 * right(*a)), "numbers", "result[0, 0, 0]"),
    (lambda *a: right(*a) * np.nan, "nan", "12 of 12 numbers are NaN or infinite"),
    (changing, "changed", "changes its argument eps in place: eps[0, 0, 0] was"),
    (remembering, "random", "Two calls with the same arguments give different results"),
    (lambda *a: right(*a) + np.random.default_rng().normal(), "random", "All noise is an argument"),
]


@pytest.mark.parametrize(("function", "problem", "words"), PROBLEMS)
def test_a_function_that_cannot_be_compared_gets_the_reason(function, problem, words):
    result = check("ddim_step", function)
    assert not result and result.problem == problem, result
    assert words in " ".join(repr(result).split())


def test_an_exception_is_shown_with_its_line_and_kept():
    result = check("ddim_step", raising)
    assert isinstance(result.error, NameError) and result.error.__traceback__ is not None
    assert "in raising: return unknown * x" in repr(result)


def test_a_failure_in_a_later_case_is_shown_with_the_wrong_numbers_before_it():
    result = check("add_noise", noise_without_reshape)
    assert result.problem == "numbers" and isinstance(result.error, ValueError)
    assert "could not be broadcast" in repr(result) and "broadcast_over_last_axis" in repr(result)


GENERAL = [
    (lambda *a: -right(*a), "sign", "wrong sign"),
    (lambda *a: 2 * right(*a), "factor", "2 times the right one"),
    (lambda *a: right(*a).swapaxes(1, 2), "axes_exchanged", "axes have the order (0, 2, 1)"),
    (lambda *a: right(*a)[:, ::-1], "reversed", "axis 1 runs backwards"),
    (lambda *a: right(*a).ravel(), "shape", "only the shape"),
    (lambda *a: 0 * right(*a), "zeros", "Every number is 0"),
    (lambda x, eps, t, s, alpha_bar: eps, "argument_returned", "The result is the argument eps itself"),
    (lambda a, b, t, s, alpha_bar: right(b, a, t, s, alpha_bar), "arguments_exchanged", "x and eps are exchanged"),
]


@pytest.mark.parametrize(("function", "mistake", "words"), GENERAL, ids=[mistake for _, mistake, _ in GENERAL])
def test_patterns_of_any_exercise_are_recognised(function, mistake, words):
    result = check("ddim_step", function)
    assert result.mistakes == (mistake,) and words in repr(result)


def test_results_in_another_order_are_recognised():
    result = check("edm_columns", lambda sigma, m: SOLUTIONS["edm_columns"](sigma, m)[::-1])
    assert result.mistakes == ("results_exchanged",)


def test_numbers_of_float32_are_right_and_the_answer_says_so():
    result = check("ddim_step", lambda *a: right(*a).astype(np.float32))
    assert result and 1e-9 < result.largest_error < 1e-6 and "rounding of float32" in repr(result)


def test_an_error_above_the_rounding_of_float32_is_wrong():
    assert check("ddim_step", lambda *a: right(*a) * (1 + 4e-5))
    assert not check("ddim_step", lambda *a: right(*a) * (1 + 6e-5))


def test_arguments_are_passed_by_name_where_the_names_are_those_of_the_exercise():
    assert check("ddim_step", lambda alpha_bar, s, t, eps, x: right(x, eps, t, s, alpha_bar))
    assert check("ddim_step", lambda *, x, eps, t, s, alpha_bar: right(x, eps, t, s, alpha_bar))
    assert check("ddim_step", lambda x, eps, t, s, alpha_bar, unused=1: right(x, eps, t, s, alpha_bar))


def test_images_come_in_the_layout_that_is_asked_for():
    def first(x, weight, bias, groups, eps):
        return np.moveaxis(SOLUTIONS["group_norm"](np.moveaxis(x, 1, -1), weight, bias, groups, eps), -1, 1)

    assert check("group_norm", first, layout="channels_first")
    assert not check("group_norm", first)


def test_a_callable_object_and_a_list_as_result_are_fine():
    class Step:
        def __call__(self, average, weights, decay):
            return (decay * average + (1 - decay) * weights).tolist()

    assert check("ema_update", Step())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("dim_step", right), r"exercise: 'dim_step' was given; .*Did you mean 'ddim_step'\?"),
        (("ddim_step",), r"no function was given; write duet.check\(\"ddim_step\", ddim_step\)"),
        ((right,), "the name first"),
        (("ddim_step", np.ones(3)), "ndarray was given as the function; give the function itself"),
    ],
)
def test_a_wrong_call_of_check_says_what_to_write(arguments, message):
    with pytest.raises(DuetError, match=message):
        check(*arguments)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"framework": "jaxx"}, "framework: 'jaxx' was given; it must be one of numpy, torch, tf"),
        ({"layout": "nchw"}, "Did you mean 'channels_first'"),
        ({"dtype": "float16"}, "dtype: 'float16' was given; it must be one of float64, float32"),
    ],
)
def test_an_unknown_option_is_an_error(option, message):
    with pytest.raises(DuetError, match=message):
        check("ddim_step", right, **option)


def test_a_framework_that_is_not_installed_is_an_error_and_no_mistake_of_the_student():
    missing = [name for name, framework in FRAMEWORKS.items() if find_spec(framework.module) is None]
    for name in missing:
        with pytest.raises(DuetError, match=f"framework: '{name}' was given, but .* is not installed"):
            check("ddim_step", right, framework=name)


def test_a_function_without_a_framework_is_called_with_numpy_first():
    assert find_frameworks(right)[0].title == "NumPy arrays"
    assert "NumPy arrays in float64" in repr(check("ddim_step", right))


def test_a_teacher_adds_an_exercise_with_mistakes_of_its_own():
    def root(x):
        """Return the square root of x, with shape (n,)."""
        return np.sqrt(x)

    add(
        root,
        "A root",
        "https://example.org",
        {"three numbers": {"x": np.array([1.0, 4.0, 9.0])}},
        laws={"Its square is x.": lambda f: distance(f(np.full(2, 5.0)) ** 2, 5.0)},
        mistakes={"halved": ("x is halved.", lambda x: x / 2)},
    )
    try:
        assert check("root", lambda x: x**0.5) and check("root", lambda x: x / 2).mistakes == ("halved",)
        with pytest.raises(DuetError, match="has the arguments y; they must be x"):
            add(root, "", "", {"a case": {"y": 1}}, laws={}, mistakes={})
    finally:
        del EXERCISES["root"]


# --- the page -----------------------------------------------------------------------------------------------------

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "exercises.md").read_text()


def test_the_lesson_of_the_page_prints_what_it_says(capsys):
    lesson = PAGE.partition("## A lesson")[2].partition("## What is checked")[0]
    blocks = re.findall(r"```python\n(.*?)```\n.*?```text\n(.*?)```", lesson, re.DOTALL)
    names: dict = {}
    assert len(blocks) == 2
    for code, output in blocks:
        exec(code, names)
        # The rounding of a right solution depends on the processor.
        assert re.sub(r"error is \S+", "", capsys.readouterr().out) == re.sub(r"error is \S+", "", output)


def test_the_page_has_a_row_for_every_exercise():
    rows = re.findall(r"^\| `(\w+)` \|.*\| `(.*)` \| (\d+) \|$", PAGE, re.MULTILINE)
    assert rows == [(n, ", ".join(e.parameters), str(len(e.mistakes))) for n, e in EXERCISES.items()]


def test_the_code_for_teachers_runs():
    names: dict = {"duet": duet, "ddim_step": right}
    try:
        for code in re.findall(r"```python\n(.*?)```", PAGE.partition("## For teachers")[2], re.DOTALL):
            exec(code, names)
        assert duet.check("snr", lambda t, alpha_bar: (alpha_bar[t] / (1 - alpha_bar[t])) ** 0.5).mistakes == ("root",)
    finally:
        EXERCISES.pop("snr", None)
