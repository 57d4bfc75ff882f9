"""Parameters of two sides are aligned by value up to known forms, then by the graph."""

from __future__ import annotations

import numpy as np
import pytest

from diffusion_core.common.errors import DuetError
from diffusion_core.parity.diff.recording import Operation, Pass
from diffusion_core.parity.diff.weights import align, copy

RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape)


def side(parameters, buffers=None, operations=(), gradients=None) -> Pass:
    """A pass of parameters that are read in order, by the operations of `operations` where it names them."""
    names = {**parameters, **(buffers or {})}
    numbers = {name: i for i, name in enumerate(names)}
    given = dict(operations)
    made = [
        Operation(given.get(name, ("multiply", {}))[0], (100, number), (200 + number,), given.get(name, ("", {}))[1])
        for name, number in numbers.items()
    ]
    if given:
        for i, operation in enumerate(made):
            if operation.kind in ("bias_add", "multiply", "gather"):
                made[i] = Operation(operation.kind, (operation.inputs[1],), operation.outputs, operation.attributes)
    return Pass(
        "float64",
        tuple(made),
        {numbers[name]: np.asarray(array) for name, array in names.items()},
        (100,),
        {},
        {name: numbers[name] for name in parameters},
        {name: numbers[name] for name in buffers or {}},
        gradients={numbers[name]: array for name, array in (gradients or {}).items()},
    )


def names(alignment) -> dict[str, str]:
    return {pair.a_name: pair.b_name for pair in alignment.pairs}


FORMS = {
    "OIHW to HWIO": lambda w: w.transpose(2, 3, 1, 0),
    "the same": lambda w: w,
    "OIHW to HWOI": lambda w: w.transpose(2, 3, 0, 1),
}


@pytest.mark.parametrize("form", FORMS)
def test_kernels_are_aligned_by_value_and_lead_gradients_the_same_way(form):
    weights = {f"layers.{i}.weight": normal(8, 4, 3, 3) for i in range(4)}
    other = {f"conv{(i + 2) % 4}/kernel": FORMS[form](w) for i, w in enumerate(weights.values())}
    found = align(side(weights), side(other))
    assert names(found) == {f"layers.{i}.weight": f"conv{(i + 2) % 4}/kernel" for i in range(4)}
    assert {pair.status for pair in found.pairs} == {"equal"}
    assert found.pairs[0].relation.startswith(form)
    gradient = normal(8, 4, 3, 3)
    assert np.array_equal(found.pairs[0].to_b(gradient), FORMS[form](gradient))
    assert np.array_equal(found.pairs[0].to_a(FORMS[form](gradient)), gradient)


def test_a_small_difference_is_told_and_a_rounding_is_none():
    a = {"a.weight": normal(6, 5), "b.weight": normal(5, 6)}
    rounded = a["a.weight"].T.astype(np.float32).astype(float)
    off = a["b.weight"].T + 1e-3
    found = align(side(a), side({"a/kernel": rounded, "b/kernel": off}))
    assert names(found) == {"a.weight": "a/kernel", "b.weight": "b/kernel"}
    assert [pair.status for pair in found.pairs] == ["equal up to rounding", "differs"]
    assert "e-03" in found.pairs[1].relation
    assert found.pairs[1].difference == pytest.approx(1e-3, rel=0.5)


PARTS = {
    "one after another": lambda q, k, v: np.concatenate([q, k, v]),
    "transposed": lambda q, k, v: np.concatenate([q, k, v]).T,
    "1x1 convolution": lambda q, k, v: np.concatenate([q, k, v])[:, :, None, None],
    "interleaved per head": lambda q, k, v: np.stack([z.reshape(4, 2, 8) for z in (q, k, v)], 1).reshape(24, 8),
    "another order": lambda q, k, v: np.concatenate([v, q, k]),
}


def test_a_part_is_found_although_some_of_its_numbers_occur_elsewhere_too():
    three = {f"attention/{n}/kernel": normal(8, 8) for n in "qkv"}
    three["attention/k/kernel"][2, 3] = three["attention/q/kernel"][5, 1]
    three["attention/v/kernel"][0, 0] = three["attention/v/kernel"][7, 7]
    fused = {"attention.qkv.weight": np.concatenate([array.T for array in three.values()])}
    found = align(side(three), side(fused))
    assert not found.unmatched_a and not found.unmatched_b
    assert np.array_equal(found.to_b("attention.qkv.weight", three), fused["attention.qkv.weight"])


@pytest.mark.parametrize("fused_side", ["a", "b"])
@pytest.mark.parametrize("form", PARTS)
def test_projections_are_found_inside_a_fused_one(form, fused_side):
    three = {f"attention/{n}/kernel": normal(8, 8) for n in "qkv"}
    fused = {"attention.qkv.weight": PARTS[form](*three.values())}
    # Dense kernels are (in, out); the fused one is made of (out, in).
    split = {name: w.T for name, w in three.items()}
    if fused_side == "b":
        found = align(side(split), side(fused))
        state = {name: 2 * w for name, w in split.items()}
        assert np.array_equal(found.to_b("attention.qkv.weight", state), 2 * fused["attention.qkv.weight"])
        assert found.to_b("attention.qkv.weight", dict(list(state.items())[:2])) is None
    else:
        found = align(side(fused), side(split))
        state = {name: 2 * w for name, w in split.items()}
        assert np.array_equal(found.to_a("attention.qkv.weight", state), 2 * fused["attention.qkv.weight"])
        for name in split:
            assert np.array_equal(
                found.to_b(name, {"attention.qkv.weight": fused["attention.qkv.weight"]}), split[name]
            )
    assert len(found.pairs) == 3
    assert not found.unmatched_a and not found.unmatched_b
    assert all("axis" in pair.relation for pair in found.pairs)


def test_zero_biases_of_projections_follow_their_kernels():
    three = {n: normal(8, 8) for n in "qkv"}
    split = {
        f"att/{n}/{kind}": w.T if kind == "kernel" else np.zeros(8)
        for n, w in three.items()
        for kind in ("kernel", "bias")
    }
    fused = {"qkv.weight": np.concatenate(list(three.values())), "qkv.bias": np.zeros(24)}
    found = align(side(fused), side(split))
    state = {"qkv.weight": fused["qkv.weight"], "qkv.bias": np.arange(24.0)}
    for i, n in enumerate("qkv"):
        assert np.array_equal(found.to_b(f"att/{n}/bias", state), np.arange(24.0)[8 * i : 8 * i + 8])


def test_heads_as_an_axis_of_their_own():
    weight = normal(24, 8)
    kernels = {
        f"mha/{n}/kernel": weight[8 * i : 8 * i + 8].T.reshape(8, 2, 4) for i, n in enumerate(("query", "key", "value"))
    }
    found = align(side({"mha.in_proj_weight": weight}), side(kernels))
    assert len(found.pairs) == 3
    for name, kernel in kernels.items():
        assert np.array_equal(found.to_b(name, {"mha.in_proj_weight": weight}), kernel)


def test_gates_in_another_order_and_two_biases_against_one():
    hidden, order = 5, [0, 1, 3, 2]
    ih, hh, b_ih, b_hh = normal(20, 3), normal(20, 5), normal(20), normal(20)

    def gates(w):
        return w.reshape(4, hidden, -1)[order].reshape(w.shape)

    a = {"rnn.weight_ih_l0": ih, "rnn.weight_hh_l0": hh, "rnn.bias_ih_l0": b_ih, "rnn.bias_hh_l0": b_hh}
    b = {"lstm/kernel": gates(ih).T, "lstm/recurrent_kernel": gates(hh).T, "lstm/bias": gates(b_ih + b_hh)}
    found = align(side(a), side(b))
    assert {pair.status for pair in found.pairs} == {"permuted"}
    assert "4 blocks along axis 1 in the order 0 1 3 2" in found.pairs[0].relation
    assert [item.name for item in found.derived] == ["lstm/bias"]
    assert np.array_equal(found.to_b("lstm/bias", a), b["lstm/bias"])
    assert not found.unmatched_a and not found.unmatched_b
    # The gradient of a sum is the gradient of each term.
    gradients = {"rnn.bias_ih_l0": b_ih, "rnn.bias_hh_l0": b_ih}
    assert np.array_equal(found.to_b("lstm/bias", gradients, gradients=True), gates(b_ih))
    assert np.array_equal(found.pairs[0].plain_to_b(ih), ih.T)


def test_a_dense_kernel_behind_a_flattening_in_another_order():
    weight = normal(10, 4 * 3 * 3)
    kernel = weight.reshape(10, 4, 3, 3).transpose(2, 3, 1, 0).reshape(36, 10)
    pair = align(side({"fc.weight": weight}), side({"dense/kernel": kernel})).pairs[0]
    assert np.array_equal(pair.to_b(weight), kernel)


def test_permuted_classes_and_flipped_kernels_are_no_layouts():
    weight, kernel = normal(10, 6), normal(4, 3, 3, 3)
    order = np.random.default_rng(1).permutation(10)
    a = {"fc.weight": weight, "conv.weight": kernel, "both.weight": normal(7, 9)}
    rows, columns = np.random.default_rng(2).permutation(7), np.random.default_rng(3).permutation(9)
    b = {
        "dense/kernel": weight[order].T,
        "conv/kernel": kernel[:, :, ::-1, ::-1].transpose(2, 3, 1, 0),
        "both/kernel": a["both.weight"][rows][:, columns].T,
    }
    found = align(side(a), side(b))
    by_name = {pair.a_name: pair for pair in found.pairs}
    assert {pair.status for pair in found.pairs} == {"permuted"}
    assert "permuted along axis 1" in by_name["fc.weight"].relation
    assert "flipped along axis 0, flipped along axis 1" in by_name["conv.weight"].relation
    assert "permuted along axis 0, permuted along axis 1" in by_name["both.weight"].relation
    for (name, partner), weights in zip(names(found).items(), a.values(), strict=True):
        assert np.array_equal(by_name[name].to_b(weights), b[partner])
        assert np.array_equal(by_name[name].to_a(b[partner]), weights)
    assert np.array_equal(by_name["fc.weight"].plain_to_b(weight), weight.T)


def test_tied_weights_and_two_copies():
    table, head = normal(12, 4), normal(4)
    a = {"embedding.weight": table, "norm.weight": head}
    b = {"embedding/embeddings": table, "norm/gamma": head, "head/kernel": table.T}
    found = align(side(a, operations={"embedding.weight": ("gather", {"axis": 0})}.items()), side(b))
    assert [(pair.a_name, pair.b_name) for pair in found.pairs if "tied" in pair.relation] == [
        ("embedding.weight", "head/kernel")
    ]
    assert np.array_equal(found.to_b("head/kernel", a), table.T)
    back = align(side(b), side(a))
    # The gradient of the tied one is the sum over its copies.
    gradients = {"embedding/embeddings": table, "head/kernel": 2 * table.T}
    assert np.allclose(back.to_b("embedding.weight", gradients, gradients=True), 3 * table)


def test_a_folded_batch_norm_is_recognised():
    kernel, bias, gamma, beta, mean = normal(6, 3, 3, 3), normal(6), normal(6), normal(6), normal(6)
    var = np.random.default_rng(1).uniform(0.5, 2, 6)
    factor = gamma / np.sqrt(var + 1e-3)
    a = side(
        {"conv.weight": kernel, "conv.bias": bias, "bn.weight": gamma, "bn.bias": beta},
        {"bn.running_mean": mean, "bn.running_var": var},
    )
    b = {
        "c/kernel": (kernel * factor[:, None, None, None]).transpose(2, 3, 1, 0),
        "c/bias": beta + (bias - mean) * factor,
    }
    found = align(a, side(b))
    assert not found.unmatched_a and not found.unmatched_b
    assert "bn folded in (epsilon 0.001)" in found.derived[0].words
    state = {"conv.weight": kernel, "conv.bias": bias, "bn.weight": gamma, "bn.bias": beta, "bn.running_mean": mean}
    state["bn.running_var"] = var
    for name, array in b.items():
        assert np.allclose(found.to_b(name, state), array, atol=1e-12)


def network(convention: str, depth: int, rng) -> Pass:
    """A freshly initialised network of convolutions, BatchNorms and a classifier; no values in common with another."""
    parameters, buffers, operations = {}, {}, {}
    torch = convention == "torch"
    for i in range(depth):
        conv, norm = (f"blocks.{i}.conv", f"blocks.{i}.bn") if torch else (f"conv2d_{i + 7}", f"batch_norm_{i + 2}")
        kernel = f"{conv}.weight" if torch else f"{conv}/kernel"
        parameters[kernel] = rng.standard_normal((8, 8, 3, 3) if torch else (3, 3, 8, 8))
        operations[kernel] = ("conv", {"kernel": "OIHW" if torch else "HWIO"})
        scale, shift = (f"{norm}.weight", f"{norm}.bias") if torch else (f"{norm}/gamma", f"{norm}/beta")
        mean, var = (
            (f"{norm}.running_mean", f"{norm}.running_var")
            if torch
            else (f"{norm}/moving_mean", f"{norm}/moving_variance")
        )
        parameters[scale], parameters[shift] = np.ones(8), np.zeros(8)
        buffers[mean], buffers[var] = np.zeros(8), np.ones(8)
        if torch:
            buffers[f"{norm}.num_batches_tracked"] = np.array(3)
    head = "fc.weight" if torch else "dense/kernel"
    parameters[head] = rng.standard_normal((8, 8))
    operations[head] = ("matmul", {"transpose_b": torch})
    return side(parameters, buffers, operations.items())


def test_two_fresh_networks_are_aligned_by_the_graph_and_copied():
    a, b = network("torch", 5, np.random.default_rng(1)), network("keras", 5, np.random.default_rng(2))
    found = align(a, b)
    assert not found.unmatched_a and not found.unmatched_b
    assert len(found.a_counters) == 5
    expected = {"fc.weight": "dense/kernel"}
    for i in range(5):
        expected[f"blocks.{i}.conv.weight"] = f"conv2d_{i + 7}/kernel"
        ends = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
        expected |= {f"blocks.{i}.bn.{x}": f"batch_norm_{i + 2}/{y}" for x, y in ends.items()}
    assert names(found) == expected
    states = [{n: p.values[i] for n, i in {**p.parameters, **p.buffers}.items()} for p in (a, b)]
    copied = copy(found, *states)
    assert not copied.missing and not copied.unused
    # Square matrices too are turned as their operations read them.
    assert np.array_equal(copied.state["dense/kernel"], states[0]["fc.weight"].T)
    assert np.array_equal(copied.state["conv2d_7/kernel"], states[0]["blocks.0.conv.weight"].transpose(2, 3, 1, 0))


def test_equal_zeros_are_told_apart_by_their_gradients():
    gradients = normal(3, 6)
    a = side({f"x{i}": np.zeros(6) for i in range(3)}, gradients={f"x{i}": gradients[i] for i in range(3)})
    b = side({f"y{i}": np.zeros(6) for i in range(3)}, gradients={f"y{i}": gradients[(i + 1) % 3] for i in range(3)})
    assert names(align(a, b)) == {"x0": "y2", "x1": "y0", "x2": "y1"}


def test_a_map_wins_and_is_checked():
    w = normal(4, 4)
    a, b = side({"p.weight": w, "q.weight": normal(4, 4)}), side({"p/kernel": w.T, "q/kernel": normal(4, 4)})
    assert names(align(a, b))["p.weight"] == "p/kernel"
    assert names(align(a, b, {"p.weight": "q/kernel"}))["p.weight"] == "q/kernel"
    with pytest.raises(DuetError, match=r"p\.wieght"):
        align(a, b, {"p.wieght": "p/kernel"})
    with pytest.raises(DuetError, match="p/kernl"):
        align(a, b, {"p.weight": "p/kernl"})
    with pytest.raises(DuetError, match=r"\(4, 4\)"):
        align(a, side({"r/kernel": normal(3, 3)}), {"p.weight": "r/kernel"})


def test_what_has_no_partner_is_listed_and_named_with_the_reason():
    a = {"conv.weight": normal(4, 3, 3, 3), "extra.weight": normal(7, 2)}
    b = {"conv/kernel": normal(3, 3, 3, 4), "other/kernel": normal(5, 5)}
    found = align(side(a), side(b))
    assert found.unmatched_a == ("extra.weight",)
    assert found.unmatched_b == ("other/kernel",)
    copied = copy(found, a, b)
    assert list(copied.missing) == ["other/kernel"]
    assert "(5, 5)" in copied.missing["other/kernel"]
    assert copied.unused == ("extra.weight",)
    assert np.array_equal(copied.state["other/kernel"], b["other/kernel"])


def test_heads_of_fresh_attention_are_written_by_what_their_axes_mean():
    a = side({"q.weight": normal(8, 8)}, operations={"q.weight": ("matmul", {"transpose_b": True})}.items())
    b = side(
        {"mha/query/kernel": normal(8, 2, 4)},
        operations={"mha/query/kernel": ("einsum", {"equation": "abc,cde->abde"})}.items(),
    )
    found = align(a, b)
    weight = normal(8, 8)
    assert np.array_equal(found.to_b("mha/query/kernel", {"q.weight": weight}), weight.T.reshape(8, 2, 4))


def test_depthwise_kernels_with_a_multiplier():
    a = side({"dw.weight": normal(6, 1, 3, 3)}, operations={"dw.weight": ("conv", {"kernel": "OIHW"})}.items())
    b = side({"dw/kernel": normal(3, 3, 3, 2)}, operations={"dw/kernel": ("conv", {"kernel": "HWIM"})}.items())
    weight = normal(6, 1, 3, 3)
    expected = weight.reshape(3, 2, 3, 3).transpose(2, 3, 0, 1)
    assert np.array_equal(align(a, b).to_b("dw/kernel", {"dw.weight": weight}), expected)
    same = side({"dw/kernel": expected})
    found = align(side({"dw.weight": weight}), same)
    assert np.array_equal(found.to_b("dw/kernel", {"dw.weight": 2 * weight}), 2 * expected)


def recurrent(torch: bool) -> Pass:
    """A fresh recurrent layer: PyTorch keeps two biases, Keras one."""
    if torch:
        kernels = {"rnn.weight_ih": normal(12, 5), "rnn.weight_hh": normal(12, 3)}
        biases = {"rnn.bias_ih": normal(12), "rnn.bias_hh": normal(12)}
    else:
        kernels = {"lstm/kernel": normal(5, 12), "lstm/recurrent_kernel": normal(3, 12)}
        biases = {"lstm/bias": np.zeros(12)}
    operations = {name: ("matmul", {"transpose_b": torch}) for name in kernels}
    return side(kernels | biases, operations=[*operations.items(), *((name, ("bias_add", {})) for name in biases)])


def test_two_biases_of_a_fresh_recurrent_layer_are_copied_as_their_sum_and_back():
    a, b = recurrent(True), recurrent(False)
    states = [{name: p.values[number] for name, number in p.parameters.items()} for p in (a, b)]
    copied = copy(align(a, b), *states)
    assert not copied.missing
    assert np.array_equal(copied.state["lstm/bias"], states[0]["rnn.bias_ih"] + states[0]["rnn.bias_hh"])
    states[1]["lstm/bias"] = normal(12)
    back = copy(align(b, a), *states[::-1])
    assert not back.missing
    assert np.array_equal(back.state["rnn.bias_ih"] + back.state["rnn.bias_hh"], states[1]["lstm/bias"])


def test_biases_of_fresh_heads_are_copied_with_their_kernels():
    a = side(
        {"q.weight": normal(8, 8), "q.bias": normal(8)},
        operations={"q.weight": ("matmul", {"transpose_b": True}), "q.bias": ("bias_add", {})}.items(),
    )
    b = side(
        {"query/kernel": normal(8, 2, 4), "query/bias": np.zeros((2, 4))},
        operations={"query/kernel": ("einsum", {"equation": "abc,cde->abde"}), "query/bias": ("bias_add", {})}.items(),
    )
    states = [{name: p.values[number] for name, number in p.parameters.items()} for p in (a, b)]
    copied = copy(align(a, b), *states)
    assert not copied.missing and np.array_equal(copied.state["query/bias"].ravel(), states[0]["q.bias"])


def test_a_symmetric_matrix_is_turned_as_both_sides_use_it() -> None:
    m = normal(4, 4)
    a, b = {"fc.weight": m + m.T}, {"dense/kernel": m + m.T}
    matmul = lambda name, **more: {name: ("matmul", more)}  # noqa: E731
    (pair,) = align(
        side(a, operations=matmul("fc.weight", transpose_b=True)), side(b, operations=matmul("dense/kernel"))
    ).pairs
    assert np.array_equal(pair.to_b(m), m.T)


def test_a_kernel_of_zeros_is_not_taken_for_one_with_a_norm_folded_in() -> None:
    norm = {"weight": np.ones(4), "bias": np.zeros(4)}, {"running_mean": np.zeros(4), "running_var": np.ones(4)}
    zeros = np.zeros((4, 4, 1, 1))
    a = side(
        {"z.weight": zeros, **{f"n.{k}": v for k, v in norm[0].items()}}, {f"n.{k}": v for k, v in norm[1].items()}
    )
    words = ("gamma", "beta", "moving_mean", "moving_variance")
    arrays = dict(zip(words, (*norm[0].values(), *norm[1].values()), strict=True))
    b = side(
        {"z/kernel": zeros.transpose(2, 3, 1, 0), **{f"n/{k}": arrays[k] for k in words[:2]}},
        {f"n/{k}": arrays[k] for k in words[2:]},
    )
    found = align(a, b)
    assert names(found)["z.weight"] == "z/kernel" and not found.derived
