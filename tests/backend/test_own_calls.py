"""How networks of PyTorch and of other libraries are called: each by one line, held to a loop written by hand."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import duet
from diffusion_core.model.generate import start_noise

pytestmark = [
    pytest.mark.backend,
    pytest.mark.skipif(not find_spec("torch"), reason="it is about PyTorch and libraries that use it"),
]
if find_spec("torch"):
    import torch
    from torch import nn

    class Net(nn.Module):
        """A network of channels first that takes a class."""

        def __init__(self, classes: int = 4) -> None:
            super().__init__()
            self.conv, self.table = nn.Conv2d(3, 3, 3, padding=1), nn.Embedding(classes + 1, 3)

        def forward(self, x: Any, t: Any, y: Any = None) -> Any:
            h = self.conv(x) * torch.cos(t / 7)[:, None, None, None]
            return h if y is None else h + self.table(y)[:, :, None, None]

    class Plain(nn.Module):
        def __init__(self, conv: Any) -> None:
            super().__init__()
            self.conv = conv

        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return self.conv(x) * torch.cos(t / 7)[:, None, None, None]

    class Karras(nn.Module):
        """A denoiser D(x; sigma) with its preconditioning inside, as the networks of EDM are."""

        label_dim = 4

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.labels = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(4, 3)

        def forward(self, x: Any, sigma: Any, class_labels: Any = None, force_fp32: bool = False, **more: Any) -> Any:
            s = sigma.reshape(-1, 1, 1, 1)
            h = self.conv(x / torch.sqrt(1 + s**2))
            h = h if class_labels is None else h + self.labels(class_labels)[:, :, None, None]
            return x / (1 + s**2) + s / torch.sqrt(1 + s**2) * h


SHAPE = (2, 3, 4, 4)
PROCESS = duet.process("linear", "eps", T=50)
PLAN = duet.samplers.ddim(PROCESS, steps=4, clip=None)


@pytest.fixture(scope="module")
def net() -> Any:
    torch.manual_seed(0)
    return Net().double().eval()


def noise(plan: Any, shape: tuple[int, ...] = SHAPE, seed: int = 0) -> Any:
    """Return the noise that `duet.sample` starts from, channels first."""
    start = start_noise(plan, seed, np.arange(shape[0]), (*shape[2:], shape[1]), np.float64)
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(start, -1, 1)))


@torch.no_grad() if find_spec("torch") else (lambda function: function)
def ddim(call: Callable[..., Any], plan: Any = PLAN, shape: tuple[int, ...] = SHAPE) -> Any:
    """Sample with DDIM (Song et al., 2020, eq. 12, eta = 0) from eps = call(x, t)."""
    x = noise(plan, shape)
    for i, t in enumerate(plan.t):
        (a, s), (b, r) = ((float(plan.alpha[k]), float(plan.sigma[k])) for k in (i, i + 1))
        eps = call(x, torch.full((shape[0],), t, dtype=torch.float64))
        x = b * (x - s * eps) / a + r * eps
    return x


def agree(got: Any, wanted: Any) -> None:
    np.testing.assert_allclose(np.asarray(got), np.asarray(wanted), rtol=1e-10, atol=1e-10)


def traced(net: Any) -> Any:
    return torch.jit.script(Plain(net.conv))


def exported(net: Any) -> Any:
    return torch.export.export(Plain(net.conv), (torch.zeros(SHAPE).double(), torch.zeros(2).double()))


@pytest.mark.parametrize(
    "form",
    [
        lambda net: net,
        lambda net: torch.compile(net, backend="eager"),
        lambda net: nn.DataParallel(net),
        lambda net: partial(net, y=None),
        lambda net: net.forward,
        lambda net: duet.adapt(lambda x, t: net(x, t), framework="torch"),
        traced,
        exported,
        lambda net: exported(net).module(),
    ],
    ids=["module", "compiled", "parallel", "partial", "method", "function", "script", "exported", "its module"],
)
def test_every_form_of_a_module_gives_the_samples_of_the_module(form: Any, net: Any) -> None:
    net.train()
    samples = duet.sample(form(net), PLAN, shape=SHAPE)
    assert net.training and samples.dtype == torch.float64
    agree(samples, ddim(net))


class Holder:
    """An object of the user's that calls a module."""

    def __init__(self, net: Any) -> None:
        self.nets = {"net": [net]}

    def __call__(self, x: Any, t: Any) -> Any:
        return self.nets["net"][0](x, t)

    def denoise(self, x: Any, t: Any) -> Any:
        return self(x, t)


@pytest.mark.parametrize(
    "form",
    [Holder, lambda net: Holder(net).denoise, lambda net: lambda x, t, net=net: net(x, t)],
    ids=["object", "method", "default"],
)
def test_modules_that_an_object_or_a_function_holds_are_in_evaluation_mode(form: Any, net: Any) -> None:
    held = Plain(nn.Sequential(nn.Dropout(0.5), net.conv))
    own = duet.adapt(form(held), inputs="x, t", framework="torch")
    samples = duet.sample(own, PLAN, shape=SHAPE)
    assert held.training
    agree(samples, duet.sample(Plain(net.conv), PLAN, shape=SHAPE))


@pytest.mark.parametrize(
    ("inputs", "time", "call"),
    [
        ("[x, t]", None, lambda f: lambda pair: f(*pair)),
        ("{image: x, time: t}", None, lambda f: lambda batch: f(batch["image"], batch["time"])),
        ("t, x", None, lambda f: lambda time, image: f(image, time)),
        ("image=x, time=t", None, lambda f: lambda *, image, time: f(image, time)),
        (None, None, lambda f: lambda x, *, sigma: f(x, sigma)),
        (None, "column", lambda f: lambda x, t: f(x, t[:, 0])),
        (None, "int", lambda f: lambda x, t: f(x, {torch.int64: t.double()}[t.dtype])),
    ],
    ids=["list", "dict", "reversed", "keywords", "keyword t", "column", "int"],
)
def test_every_order_of_the_arguments_is_one_line(inputs: Any, time: Any, call: Any, net: Any) -> None:
    own = duet.adapt(call(net), inputs=inputs, time=time, framework="torch")
    agree(duet.sample(own, PLAN, shape=SHAPE), ddim(net))


@pytest.mark.parametrize(
    ("output", "wrap"),
    [
        (None, lambda y: (y, 0)),
        (None, lambda y: {"sample": y, "rest": y}),
        (None, lambda y: {"only": y}),
        ("eps", lambda y: {"eps": y, "rest": 0 * y}),
        (1, lambda y: [0 * y, y]),
        ("real", lambda y: torch.complex(y, y)),
        (None, lambda y: torch.cat([y, 0 * y], dim=1)),
    ],
    ids=["tuple", "sample", "one key", "key", "position", "attribute", "learned variance"],
)
def test_every_kind_of_result_is_read(output: Any, wrap: Any, net: Any) -> None:
    own = duet.adapt(lambda x, t: wrap(net(x, t)), output=output, framework="torch")
    agree(duet.sample(own, PLAN, shape=SHAPE), ddim(net))


def test_both_layouts_give_the_same_bits(net: Any) -> None:
    def last(x: Any, t: Any, y: Any) -> Any:
        return net(x.movedim(-1, 1).contiguous(), t, y).movedim(1, -1)

    first = duet.sample(net, PLAN, shape=SHAPE, labels=[0, 1])
    other = duet.adapt(last, layout="channels_last", framework="torch")
    assert torch.equal(duet.sample(other, PLAN, shape=(2, 4, 4, 3), labels=[0, 1]).movedim(-1, 1), first)
    # The same for a function of NumPy arrays, up to the rounding of its convolution.
    rows = duet.adapt(lambda x, t, y: last(*map(torch.from_numpy, (x, t, y.astype(int)))).detach().numpy())
    agree(duet.sample(rows, PLAN, shape=(2, 4, 4, 3), labels=[0, 1]), first.movedim(1, -1))


@pytest.mark.parametrize(
    "shape", [(3, 7), (3, 2, 9), (2, 3, 4, 6), (2, 2, 3, 4, 5)], ids=["vector", "1-D", "2-D", "3-D"]
)
def test_samples_of_every_rank_are_the_same_numbers_in_both_layouts(shape: tuple[int, ...]) -> None:
    def half(x: Any, t: Any) -> Any:
        return x * torch.cos(t / 7).reshape(-1, *[1] * (x.ndim - 1))

    first = duet.sample(half, PLAN, shape=shape, framework="torch")
    last = duet.sample(half, PLAN, shape=(shape[0], *shape[2:], shape[1]), framework="torch", layout="channels_last")
    assert first.shape == shape and torch.equal(last.movedim(-1, 1), first)


def test_a_guided_plan_evaluates_the_null_label(net: Any) -> None:
    plan = duet.samplers.ddim(PROCESS, steps=4, clip=None, guidance=2.5)
    y, null = torch.tensor([1, 3]), torch.tensor([4, 4])

    def guided(x: Any, t: Any) -> Any:
        return net(x, t, null) + 2.5 * (net(x, t, y) - net(x, t, null))

    agree(duet.sample(net, plan, shape=SHAPE, labels=y, classes=4), ddim(guided, plan))
    with pytest.warns(UserWarning, match="label 4 stands for no class"):
        agree(duet.sample(net, plan, shape=SHAPE, labels=y), ddim(guided, plan))


def heun(denoise: Callable[..., Any], sigmas: Any, x: Any) -> Any:
    """Sample with Heun's method (Karras et al., 2022, algorithm 1) from D(x; sigma)."""
    for sigma, after in itertools.pairwise(sigmas):
        slope = (x - denoise(x, sigma)) / sigma
        euler = x + (after - sigma) * slope
        x = euler
        if after > 0:
            x = x - (after - sigma) * slope
            x = x + (after - sigma) * (slope + (euler - denoise(euler, after)) / after) / 2
    return x


@pytest.mark.parametrize("labelled", [False, True])
def test_a_network_of_edm_samples_as_by_its_own_loop(labelled: bool) -> None:
    torch.manual_seed(0)
    net, process = Karras().double(), duet.process("edm", "denoiser")
    plan = duet.samplers.heun(process, steps=4)
    one_hot = torch.eye(4).double()[[0, 2]] if labelled else None
    sigmas = [*np.unique(plan.sigma[plan.sigma > 0])[::-1].tolist(), 0.0]

    def denoise(x: Any, sigma: float) -> Any:
        return net(x, torch.full((2,), sigma, dtype=torch.float64), one_hot)

    with torch.no_grad():
        wanted = heun(denoise, sigmas, noise(plan))
    given = {"labels": [0, 2]} if labelled else {}
    agree(duet.sample(net, plan, shape=SHAPE, **given), wanted)


def test_a_model_of_k_diffusion_samples_as_by_its_own_loop() -> None:
    torch.manual_seed(0)
    net, process = Karras().double(), duet.process("linear", "denoiser", T=50)
    plan = duet.samplers.euler(process, steps=4, clip=None)

    def model(x: Any, sigma: Any, **extra_args: Any) -> Any:
        return net(x, sigma, extra_args["cond"])

    cond, sigmas = torch.rand(2, 4).double(), np.append(plan.sigma[:-1] / plan.alpha[:-1], 0.0)
    x = noise(plan) / float(plan.alpha[0])
    with torch.no_grad():
        for sigma, after in itertools.pairwise(sigmas):
            denoised = model(x, torch.full((2,), sigma, dtype=torch.float64), cond=cond)
            x = x + (x - denoised) / sigma * (after - sigma)
    own = duet.adapt(lambda x, sigma, cond: model(x, sigma, cond=cond), framework="torch")
    agree(duet.sample(own, plan, shape=SHAPE, conditions={"cond": cond}), x)


UNET = {
    "sample_size": 4, "in_channels": 3, "out_channels": 3, "block_out_channels": (4, 8), "norm_num_groups": 2,
    "layers_per_block": 1,
}  # fmt: skip


@pytest.mark.skipif(not find_spec("diffusers"), reason="diffusers is not installed")
def test_the_networks_of_diffusers_need_one_line() -> None:
    import diffusers

    torch.manual_seed(0)
    plain = diffusers.UNet2DModel(
        **UNET, down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, num_class_embeds=5
    ).double()
    y = torch.tensor([0, 3])
    agree(
        duet.sample(plain, PLAN, shape=SHAPE, labels=y),
        ddim(lambda x, t: plain.eval()(x, t, class_labels=y, return_dict=False)[0]),
    )
    text = diffusers.UNet2DConditionModel(
        **UNET, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), attention_head_dim=2,
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=6,
    ).double().eval()  # fmt: skip
    prompt, empty = torch.rand(2, 5, 6).double(), torch.zeros(2, 5, 6).double()
    plan = duet.samplers.ddim(PROCESS, steps=3, clip=None, guidance=3.0)
    guided = duet.sample(
        text, plan, shape=SHAPE, conditions={"encoder_hidden_states": prompt},
        null_conditions={"encoder_hidden_states": empty},
    )  # fmt: skip

    def by_hand(x: Any, t: Any) -> Any:
        with_text, without = (text(x, t, encoder_hidden_states=e).sample for e in (prompt, empty))
        return without + 3.0 * (with_text - without)

    agree(guided, ddim(by_hand, plan))
    dit = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=4, in_channels=2, out_channels=4, num_layers=1, sample_size=4,
        patch_size=2, num_embeds_ada_norm=5,
    ).double().eval()  # fmt: skip
    shape = (2, 2, 4, 4)
    agree(
        duet.sample(dit, PLAN, shape=shape, labels=y, time="int"),
        ddim(lambda x, t: dit(x, timestep=t.long(), class_labels=y).sample[:, :2], shape=shape),
    )


@pytest.mark.skipif(not (find_spec("onnxruntime") and find_spec("onnx")), reason="onnxruntime is not installed")
def test_an_onnx_file_is_called_by_its_input_names_and_types(tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper

    table = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["timestep"], ["time"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["time", "seven"], ["angle"]),
        helper.make_node("Cos", ["angle"], ["cosine"]),
        helper.make_node("Reshape", ["cosine", "column"], ["scale"]),
        helper.make_node("Mul", ["sample", "scale"], ["scaled"]),
        helper.make_node("Gather", ["table", "class_labels"], ["embedded"]),
        helper.make_node("Reshape", ["embedded", "pixels"], ["offset"]),
        helper.make_node("Add", ["scaled", "offset"], ["out"]),
    ]
    constants = {
        "seven": np.array(7, np.float32), "column": np.array([-1, 1, 1, 1]), "pixels": np.array([-1, 3, 1, 1]),
        "table": table,
    }  # fmt: skip
    graph = helper.make_graph(
        nodes, "net",
        [
            helper.make_tensor_value_info("timestep", TensorProto.INT64, ["b"]),
            helper.make_tensor_value_info("sample", TensorProto.FLOAT, ["b", 3, 4, 4]),
            helper.make_tensor_value_info("class_labels", TensorProto.INT64, ["b"]),
        ],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["b", 3, 4, 4])],
        [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()],
    )  # fmt: skip
    path = tmp_path / "net.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    y = np.array([0, 3])
    got = duet.sample(str(path), PLAN, shape=SHAPE, labels=y)
    offset = torch.from_numpy(table[y]).double()[:, :, None, None]
    wanted = ddim(lambda x, t: x * torch.cos(t / 7)[:, None, None, None] + offset)
    np.testing.assert_allclose(got, wanted.numpy(), rtol=1e-4, atol=1e-4)
    with pytest.raises(duet.DuetError, match="whole numbers, but the plan has t"):
        duet.sample(path, duet.samplers.ddim(PROCESS, steps=4, spacing="karras"), shape=SHAPE, labels=y)
    with pytest.raises(duet.DuetError, match="may run code"):
        duet.sample(tmp_path / "net.pt2", PLAN, shape=SHAPE)


def test_a_reference_to_code_names_a_network_or_what_builds_it(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "own_nets.py").write_text(
        "import torch\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self, width=2):\n"
        "        super().__init__()\n"
        "        self.scale = torch.nn.Parameter(torch.full((), 0.25 * width).double())\n"
        "    def forward(self, x, t):\n"
        "        return self.scale * x\n"
        "def build():\n"
        "    return Net()\n"
        "net = Net()\n"
        "def halved(x, t):\n"
        "    return 0.5 * x\n"
        "def broken():\n"
        "    return 1 / 0\n"
        "def forgot():\n"
        "    net\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    wanted = ddim(lambda x, t: 0.5 * x)
    for name in ("Net", "build", "net", "halved"):
        agree(duet.sample(f"own_nets:{name}", PLAN, shape=SHAPE, layout="channels_first"), wanted)
    agree(duet.sample(f"{tmp_path}/own_nets.py:build", PLAN, shape=SHAPE), wanted)
    for reference, message in (
        ("own_nets:biuld", "Did you mean 'build'"),
        ("no_such_package.file:build", "no module 'no_such_package'"),
        ("nowhere/file.py:build", "there is no file nowhere/file.py"),
        ("own_nets:forgot", "returned None"),
    ):
        with pytest.raises(duet.DuetError, match=message):
            duet.sample(reference, PLAN, shape=SHAPE)
    with pytest.raises(ZeroDivisionError):
        duet.sample("own_nets:broken", PLAN, shape=SHAPE)


def test_half_precision_keeps_the_timesteps(net: Any) -> None:
    seen = []

    class Half(Net):
        def forward(self, x: Any, t: Any) -> Any:
            seen.append((x.dtype, t.tolist()))
            return self.conv(x)

    samples = duet.sample(Half().to(torch.bfloat16), PLAN, shape=SHAPE)
    assert samples.dtype == torch.float32
    assert seen == [(torch.bfloat16, [t, t]) for t in PLAN.t]


MISTAKES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "a process for a plan": (lambda net: duet.sample(net, PROCESS, shape=SHAPE), "plan: a process"),
    "a number for a plan": (lambda net: duet.sample(net, 16, shape=SHAPE), "plan: 16 was given"),
    "no shape": (lambda net: duet.sample(net, PLAN), "shape: it is missing"),
    "no batch": (lambda net: duet.sample(net, PLAN, shape=(3,)), "shape: .* the number of samples"),
    "float labels": (lambda net: duet.sample(net, PLAN, shape=SHAPE, labels=torch.ones(2)), "labels: float32"),
    "few labels": (lambda net: duet.sample(net, PLAN, shape=SHAPE, labels=[1, 2, 3]), r"labels: .*\(3,\)"),
    "large labels": (lambda net: duet.sample(net, PLAN, shape=SHAPE, labels=[0, 9]), "labels: 9 was given.*0 to 4"),
    "negative labels": (lambda net: duet.sample(net, PLAN, shape=SHAPE, labels=-1), "labels: -1 was given"),
    "no null label": (
        lambda net: duet.sample(net, duet.samplers.ddim(PROCESS, steps=2, guidance=2.0), shape=SHAPE, labels=4),
        "classes: the plan has guidance",
    ),
    "guidance without labels": (
        lambda net: duet.sample(net, duet.samplers.ddim(PROCESS, steps=2, guidance=2.0), shape=SHAPE),
        "labels: the plan has guidance",
    ),
    "bytes": (lambda net: duet.sample(net, PLAN, shape=SHAPE, start=np.zeros(SHAPE, np.uint8)), "start: uint8"),
    "half an inpainting": (lambda net: duet.sample(net, PLAN, shape=SHAPE, mask=1.0), "known or mask is missing"),
    "a grey mask": (lambda net: duet.sample(net, PLAN, shape=SHAPE, known=0.0, mask=0.5), "mask: it must be 1"),
    "a misspelt option": (lambda net: duet.sample(net, PLAN, shape=SHAPE, label=1), "Did you mean 'labels'"),
    "a class": (lambda net: duet.sample(type(net), PLAN, shape=SHAPE), "the class Net was given"),
    "weights": (lambda net: duet.sample(net.state_dict(), PLAN, shape=SHAPE), "a state dict"),
    "no numbers": (lambda net: duet.sample(Net().to("meta"), PLAN, shape=SHAPE), "meta device"),
    "None": (lambda net: duet.sample(lambda x, t: None, PLAN, shape=SHAPE), "it returned None"),
    "another output": (
        lambda net: duet.sample(lambda x, t: x[:, :2], PLAN, shape=SHAPE, framework="torch"),
        r"its output has shape \(2, 4, 4\) for a sample of shape \(3, 4, 4\)",
    ),
    "an array for a tensor": (
        lambda net: duet.sample(lambda x, t: x.numpy(), PLAN, shape=SHAPE, framework="torch"),
        "it must return a tensor",
    ),
    "no learned variance": (
        lambda net: duet.sample(net, duet.samplers.ddpm(PROCESS, steps=2, variance="learned"), shape=SHAPE),
        "a learned variance needs 6",
    ),
    "several outputs": (
        lambda net: duet.sample(lambda x, t: {"a": x, "b": x}, PLAN, shape=SHAPE),
        r"it returned a, b; say which",
    ),
    "whole images": (lambda net: duet.loss(net, np.zeros(SHAPE, int), PROCESS), "images: int64"),
    "dropout without a null label": (
        lambda net: duet.loss(duet.adapt(lambda x, t, y: x, framework="torch"), np.zeros(SHAPE), PROCESS, labels=1,
                              label_dropout=0.1),
        "label_dropout needs the null label",
    ),
    "no process": (lambda net: duet.train(net, "cosine", np.zeros((4, 4, 4, 3), np.uint8)), "process: 'cosine'"),
    "a null label between": (lambda net: duet.adapt(net, classes=4, null_label=2), "null_label: 2 .* must be 4"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_that_says_what_to_give(name: str, net: Any) -> None:
    call, message = MISTAKES[name]
    with pytest.raises(duet.DuetError, match=message) as raised:
        call(net)
    assert "\n" not in str(raised.value)


def test_an_exception_of_the_network_stays_as_it_is_with_a_note(net: Any) -> None:
    with pytest.raises(RuntimeError, match="expected input") as raised:
        duet.sample(net, PLAN, shape=(2, 4, 4, 3))
    (note,) = raised.value.__notes__
    assert "x torch.float64 (2, 4, 4, 3)" in note and "its layout is channels_first" in note


def test_samples_that_are_not_finite_are_a_warning() -> None:
    with pytest.warns(UserWarning, match="2 of 2 samples"):
        duet.sample(lambda x, t: x * np.nan, PLAN, shape=SHAPE)
