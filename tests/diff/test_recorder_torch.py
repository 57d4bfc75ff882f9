"""The recorder of PyTorch: its operations mean what the vocabulary says, and it says where they come from.

The law: each recorded operation, evaluated in NumPy on the recorded inputs, gives the recorded outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.backend
torch = pytest.importorskip("torch")
recorder = pytest.importorskip("backends.torch.recorder")

nn, F = torch.nn, torch.nn.functional
X = np.random.default_rng(0).standard_normal((2, 4, 8, 8))
S = np.random.default_rng(1).standard_normal((2, 5, 4))
V = np.random.default_rng(2).standard_normal((1, 2, 4, 4, 4))
POSITIVE = np.abs(S) + 0.1
LABELS = np.array([[1, 3, 0, 0, 2], [2, 2, 1, 3, 0]])


def summed(*functions: Callable) -> Callable:
    """Return a function that applies each function to the input, and returns every result."""
    return lambda *inputs: [function(*inputs) for function in functions]


class Layers(nn.Module):
    """Applies each layer to the same input."""

    def __init__(self, *layers: Any) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layer for layer in layers if isinstance(layer, nn.Module))
        self.functions = [layer for layer in layers if not isinstance(layer, nn.Module)]

    def forward(self, *inputs: Any) -> list:
        return [layer(*inputs) for layer in [*self.layers, *self.functions]]


class Called(nn.Module):
    """Calls a layer with its input several times, or with a part of it."""

    def __init__(self, layer: Any, count: int, index: Any = slice(None)) -> None:
        super().__init__()
        self.layer, self.count, self.index = layer, count, index

    def forward(self, x: Any) -> Any:
        return self.layer(*[x[self.index]] * self.count)


def slices(x: Any) -> Any:
    y = x.clone()
    y[:, 0] = x[:, 1] * 2
    y[:, 1:3, ::2] += 1
    z = y.view(2, -1)
    z[:, ::3].mul_(3)
    y[0].copy_(y[1])
    return y + 1, z[:, 5:].tanh()


CASES: dict[str, tuple[Callable[[], Any], tuple]] = {
    "convolutions": (
        lambda: Layers(
            nn.Conv2d(4, 6, 3, stride=2, padding=1),
            nn.Conv2d(4, 8, 3, groups=4, padding="same", padding_mode="reflect"),
            nn.Conv2d(4, 4, (3, 1), dilation=2, groups=2, bias=False),
            nn.Conv2d(4, 4, 4, padding="same", padding_mode="circular"),
            nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1),
            nn.ConvTranspose2d(4, 4, 2, stride=2, groups=2, output_padding=1),
        ),
        (X,),
    ),
    "convolutions of lines": (
        lambda: Layers(
            nn.Conv1d(5, 3, 3, padding=1),
            nn.ConvTranspose1d(5, 2, 3, dilation=2),
            nn.MaxPool1d(2),
            nn.AvgPool1d(2, padding=1),
            nn.AdaptiveAvgPool1d(3),
            nn.AdaptiveMaxPool1d(2),
            nn.Upsample(scale_factor=1.5, mode="linear"),
            nn.Upsample(7, mode="nearest"),
            nn.BatchNorm1d(5),
            nn.ReflectionPad1d(2),
            lambda x: F.conv1d(x[0], torch.ones(1, 5, 2)),
        ),
        (S,),
    ),
    "convolutions of volumes": (
        lambda: Layers(
            nn.Conv3d(2, 3, 2, stride=2),
            nn.ConvTranspose3d(2, 2, 2),
            nn.MaxPool3d(2),
            nn.AvgPool3d(2),
            nn.AdaptiveAvgPool3d(2),
            nn.InstanceNorm3d(2, affine=True),
            nn.Upsample(scale_factor=2, mode="trilinear"),
        ),
        (V,),
    ),
    "pools": (
        lambda: summed(
            lambda x: F.max_pool2d(x, 3, 2, 1),
            lambda x: F.max_pool2d(x, 3, 2, ceil_mode=True),
            lambda x: F.max_pool2d(x[0], 2, dilation=2),
            lambda x: F.avg_pool2d(x, 3, 2, 1),
            lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True, count_include_pad=False),
            lambda x: F.avg_pool2d(x, 2, divisor_override=3),
            lambda x: F.adaptive_avg_pool2d(x, (3, 5)),
            lambda x: F.adaptive_avg_pool2d(x, 1),
            lambda x: F.adaptive_max_pool2d(x, 3),
            lambda x: F.lp_pool2d(x.abs(), 2, 2),
            lambda x: F.unfold(x, 3, dilation=2, padding=1, stride=2),
            lambda x: F.local_response_norm(x, 3),
        ),
        (X,),
    ),
    "norms": (
        lambda: Layers(
            nn.BatchNorm2d(4),
            nn.BatchNorm2d(4, affine=False, track_running_stats=False),
            nn.GroupNorm(2, 4),
            nn.LayerNorm((8, 8)),
            nn.LayerNorm(8, elementwise_affine=False),
            nn.InstanceNorm2d(4),
            nn.RMSNorm(8, eps=1e-6),
            lambda x: F.normalize(x),
            lambda x: F.cosine_similarity(x, x.flip(0), dim=1),
            nn.utils.parametrizations.weight_norm(nn.Linear(8, 3)),
            nn.utils.parametrizations.spectral_norm(nn.Linear(8, 3)),
        ),
        (X,),
    ),
    "activations": (
        lambda: Layers(
            *(
                getattr(nn, name)()
                for name in [
                    "ELU",
                    "Hardshrink",
                    "Hardsigmoid",
                    "Hardtanh",
                    "Hardswish",
                    "LeakyReLU",
                    "LogSigmoid",
                    "PReLU",
                    "ReLU",
                    "ReLU6",
                    "RReLU",
                    "SELU",
                    "CELU",
                    "GELU",
                    "Sigmoid",
                    "SiLU",
                    "Mish",
                    "Softplus",
                    "Softshrink",
                    "Softsign",
                    "Tanh",
                    "Tanhshrink",
                    "GLU",
                ]
            ),
            nn.ELU(0.5),
            nn.CELU(2.0),
            nn.GELU("tanh"),
            nn.Softplus(2.0, 1.0),
            nn.Threshold(0.1, 20),
            nn.PReLU(4),
            nn.Softmin(1),
            nn.Softmax2d(),
            nn.LogSoftmax(1),
        ),
        (X,),
    ),
    "resizing": (
        lambda: summed(
            *(
                lambda x, given=given: F.interpolate(x, **given)
                for given in (
                    {"scale_factor": 2},
                    {"size": (5, 11)},
                    {"scale_factor": 1.3, "mode": "nearest-exact"},
                    {"scale_factor": 2, "mode": "bilinear"},
                    {"size": 5, "mode": "bilinear", "align_corners": True},
                    {"scale_factor": 1.7, "mode": "bilinear"},
                    {"scale_factor": 1.7, "mode": "bilinear", "recompute_scale_factor": True},
                    {"size": 12, "mode": "bicubic"},
                    {"size": 5, "mode": "bicubic", "align_corners": True},
                    {"size": 5, "mode": "bilinear", "antialias": True},
                    {"size": 5, "mode": "bicubic", "antialias": True},
                    {"size": 4, "mode": "area"},
                )
            ),
            lambda x: F.pixel_shuffle(x, 2),
            lambda x: F.pixel_unshuffle(x, 2),
            lambda x: F.channel_shuffle(x, 2),
        ),
        (X,),
    ),
    "padding": (
        lambda: summed(
            *(
                lambda x, mode=mode: F.pad(x, (1, 2, 3, 0), mode=mode)
                for mode in ("constant", "reflect", "replicate", "circular")
            ),
            lambda x: F.pad(x, (1, -2, 0, 0, 1, 0), value=0.5),
        ),
        (X,),
    ),
    "elementwise": (
        lambda: summed(
            lambda x: 1 - x * 2 + x / 3 - (2 / x),
            lambda x: x**3 + 2**x + x.pow(0.5) + x.square(),
            lambda x: torch.exp(x).log1p() + x.expm1().log() + x.sqrt().rsqrt() + x.reciprocal(),
            lambda x: x.sin() + x.cos().abs() - x.tan().sign() + x.sinh().atan() + x.erf() + torch.erfc(x),
            lambda x: x.floor() + x.ceil().round() + x.trunc() + x % 0.3 + x // 0.7,
            lambda x: torch.lerp(x, x * 2, 0.3) + torch.addcmul(x, x, x, value=2) + torch.add(x, x, alpha=0.5),
            lambda x: torch.maximum(x, x.flip(1)) + torch.clamp(x, 0.2) + x.clamp(max=0.7) + x.clamp(min=x.mean()),
            lambda x: torch.where(x > 0.5, x, 0.0) + x.masked_fill(x < 0.2, -1.0) + (x == x) + (~(x > 1)),
            lambda x: torch.atan2(x, x + 1) + torch.log2(x) + torch.exp2(x) + torch.hypot(x, x).detach().mean(),
            lambda x: (x > 0.2) & (x < 1) | torch.isnan(x),
            lambda x: (x.to(torch.float32) * 2).double() + x.int() * 0.5 + x.long() / 3,
        ),
        (POSITIVE,),
    ),
    "reductions": (
        lambda: summed(
            lambda x: x.sum() + x.mean((0, 2), keepdim=True) + x.amax(1, True) + x.amin() + x.max() - x.min(),
            lambda x: x.max(1).values + x.min(1)[0] + x.prod(1) + x.logsumexp(1) + x.norm(dim=1),
            lambda x: x.var(1, unbiased=False) + x.std(1) + torch.var_mean(x, 1)[1] + x.norm(p=1, dim=1),
            lambda x: x.argmax(1) + x.argmin(1) + x.max(1).indices,
            lambda x: x.cumsum(1) + x.cumprod(1),
            lambda x: (x > 0).any(1) | (x > 0).all(1),
            lambda x: x.sort(1, descending=True).values[:, :2] + x.topk(2, 1).values,
        ),
        (S,),
    ),
    "shapes": (
        lambda: summed(
            lambda x: x.permute(0, 2, 3, 1).reshape(2, -1, 4).transpose(1, 2).unflatten(2, (8, 8)),
            lambda x: torch.cat([x, x[:, :1]], 1)[:, -3:, 1::2, ...],
            lambda x: torch.stack(x.unbind(1), 3)[..., 2].squeeze()[:, None].expand(2, 3, 8, 8),
            lambda x: x.split([1, 3], 1)[1].roll((1, 2), (2, 3)).roll(3) + x[:, 1:].flip(1, 3),
            lambda x: x.repeat(1, 1, 2, 1).repeat_interleave(2, 3).rot90(1, (2, 3)),
            lambda x: x[:, [0, 2, 1]] + x[:, torch.tensor([-1])] + x[torch.tensor([[0], [1]]), torch.tensor([1, 0, 3])],
            lambda x: x[x > 0],
            lambda x: x.tril(1).triu(-2) + x.unfold(2, 8, 1)[:, :, 0].movedim(3, 2),
            lambda x: (
                torch.diagonal(x, dim1=2, dim2=3) + x.gather(3, torch.zeros(2, 4, 8, 1, dtype=torch.long))[..., 0]
            ),
            lambda x: x.index_select(1, torch.tensor([1, 1])) + x.narrow(1, 1, 2),
            lambda x: torch.zeros(2, 4, 8, 8).scatter(1, torch.ones(2, 1, 8, 8, dtype=torch.long), x),
            lambda x: torch.meshgrid(torch.arange(8.0), torch.linspace(0, 1, 8), indexing="ij")[0] * x,
            lambda x: x.mT @ x + torch.tensordot(x, x[0], dims=([1, 3], [0, 2])).sum() + x.as_strided((8, 8), (8, 1)),
        ),
        (X,),
    ),
    "products": (
        lambda: summed(
            lambda x: torch.einsum("btc,bsc->bts", x, x),
            lambda x: torch.einsum("btc,c->bt", x, x[0, 0]),
            lambda x: torch.baddbmm(x @ x.mT, x, x.mT, beta=0.5, alpha=2),
            lambda x: torch.addmm(x[0] @ x[0].T, x[0], x[0].T) + torch.outer(x[0, :, 0], x[0, :, 0]),
            lambda x: x[0] @ x[0, 0] + x[0, 0] @ x[0, 0],
            lambda x: F.linear(x, x[0]) + F.bilinear(x, x, torch.ones(5, 4, 4)),
            lambda x: F.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None], is_causal=True),
            lambda x: F.scaled_dot_product_attention(x[None], x[None], x[None], torch.ones(5, 5).tril() > 0, scale=0.3),
        ),
        (S,),
    ),
    "losses": (
        lambda: summed(
            lambda x, y: F.cross_entropy(x.mT, y) + F.cross_entropy(x.mT, y, ignore_index=0, label_smoothing=0.1),
            lambda x, y: F.cross_entropy(x.mT, y, torch.arange(1.0, 5), reduction="sum"),
            lambda x, y: F.mse_loss(x, x.flip(1)) + F.l1_loss(x, x.flip(1)) + F.smooth_l1_loss(x, x.flip(1), beta=0.3),
            lambda x, y: F.huber_loss(x, x.flip(1), delta=0.4) + F.kl_div(x.log_softmax(1), x.softmax(1)),
            lambda x, y: F.binary_cross_entropy_with_logits(x, x.sigmoid(), pos_weight=torch.ones(4) * 2),
            lambda x, y: F.binary_cross_entropy(x.sigmoid(), (x > 0).double(), reduction="none"),
            lambda x, y: F.embedding(y, x[0]) + F.one_hot(y, 4) + F.triplet_margin_loss(x, x.flip(0), x.flip(1)),
        ),
        (S, LABELS % 4),
    ),
    "recurrent": (
        lambda: Layers(
            nn.LSTM(4, 3, num_layers=2, bidirectional=True, batch_first=True),
            nn.GRU(4, 3),
            nn.RNN(4, 3, nonlinearity="relu"),
            nn.LSTM(4, 3, proj_size=2),
        ),
        (S,),
    ),
    "transformers": (
        lambda: Layers(
            nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, activation="gelu"),
            nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8, norm_first=True), 2),
            Called(nn.MultiheadAttention(4, 2), 3),
            Called(nn.MultiheadAttention(4, 2, add_bias_kv=True, add_zero_attn=True), 3),
            Called(nn.TransformerDecoderLayer(4, 2, 8), 2),
            Called(nn.GRUCell(4, 3), 1, 0),
            Called(nn.LSTMCell(4, 3), 1, 0),
        ),
        (S,),
    ),
    "writes in place": (
        lambda: summed(
            slices,
            lambda x: F.relu(x.clone(), inplace=True).add_(1).clamp_(0.1, 2).mul_(x),
            lambda x: torch.zeros_like(x).index_put_((torch.tensor([0, 1]),), x).masked_fill_(x > 0, 2.0),
            lambda x: torch.empty(2, 4, 8, 8).copy_(x[:, :1])[0, 0].fill_diagonal_(1.0),
            lambda x: x.new_empty(3).fill_(x.sum()),
        ),
        (X,),
    ),
}


def recorded(make: Callable[[], Any], inputs: Any, name: str = "float64") -> Any:
    precision = "float64" if name.endswith("64") else "float32"
    with recorder.building(precision, 0):
        model = make()
        if isinstance(model, nn.Module):
            model.eval()
    return recorder.record_pass(recorder.prepare(model, precision), inputs, name)


@pytest.mark.parametrize("case", CASES)
def test_each_operation_evaluated_in_numpy_gives_what_was_recorded(case: str) -> None:
    operations = pytest.importorskip("diffusion_core.parity.diff.operations")
    record = recorded(*CASES[case])
    values, wrong = dict(record.values), []
    for operation in record.operations:
        if operation.kind in ("random", "constant"):
            continue
        if operation.kind == "opaque":
            wrong.append(f"opaque {operation.native} {operation.code}")
            continue
        try:
            results = operations.evaluate(operation, [values[i] for i in operation.inputs])
        except Exception as error:
            wrong.append(f"{operation} raises {error!r}")
            continue
        for number, found in zip(operation.outputs, results, strict=False):
            expected = values.setdefault(number, np.asarray(found))
            tolerance = 1e-12 if expected.dtype == np.float64 else 1e-6
            scale = max(1.0, float(np.abs(np.nan_to_num(expected, posinf=0, neginf=0)).max(initial=0)))
            if np.shape(found) != expected.shape or not np.allclose(
                found, expected, rtol=0, atol=tolerance * scale, equal_nan=True
            ):
                wrong.append(f"{operation} gives {np.shape(found)} {np.ravel(found)[:4]} not {np.ravel(expected)[:4]}")
    assert not wrong, "\n".join(wrong)


def test_gradients_are_those_of_the_fixed_loss() -> None:
    record = recorded(lambda: nn.Linear(4, 3), (S[0],))
    (y,) = (record.values[number] for number in record.outputs.values())
    cotangent = (y + np.cos(2 * y) / 2) / y.size
    np.testing.assert_allclose(record.gradients[record.parameters["weight"]], cotangent.T @ S[0], atol=1e-15)
    assert {record.inputs[0], *record.outputs.values()} <= set(record.gradients)


def test_gradients_of_values_that_were_overwritten_are_theirs() -> None:
    def model(x: Any) -> Any:
        y = 2 * x
        y[:, 0] *= 3
        y.exp_()
        return y

    record = recorded(lambda: model, (S,))
    doubled = next(each for each in record.operations if each.kind == "multiply" and each.attributes["scalar"] == 2)
    gradient = 2 * record.gradients[doubled.outputs[0]]
    np.testing.assert_allclose(gradient, record.gradients[record.inputs[0]], rtol=1e-12)
    np.testing.assert_array_equal(record.values[doubled.outputs[0]], 2 * S)


class Author(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True))
        self.head = nn.LayerNorm(4, eps=1e-3)

    def forward(self, x: Any) -> dict:
        y = self.head(self.body(x))
        with torch.no_grad():
            centre = y.mean(1, keepdim=True)
        return {"y": y - centre, "twice": (y, {"more": self.head(y)})}


def test_operations_name_their_module_and_the_line_that_calls_or_made_it() -> None:
    record = recorded(Author, (S[0],))
    norms = [each for each in record.operations if each.kind == "layer_norm"]
    assert [each.layer for each in norms] == ["head", "head"]
    assert [each.code for each in norms] == [
        "y = self.head(self.body(x))",
        'return {"y": y - centre, "twice": (y, {"more": self.head(y)})}',
    ]
    assert norms[0].source.startswith(f"{Path(__file__).name}:")
    product = next(each for each in record.operations if each.kind == "matmul")
    assert (product.layer, product.code) == (
        "body.0",
        "self.body = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True))",
    )
    assert list(record.outputs) == ["y", "twice.0", "twice.1.more"]
    (head, *_) = (each for each in record.layers if each.path == "head")
    assert (head.type, head.options["eps"]) == ("LayerNorm", 1e-3)
    assert head.outputs == norms[0].outputs


def test_a_gradient_that_no_grad_cuts_is_cut_in_the_recording() -> None:
    record = recorded(Author, (S[0],))
    (cut,) = (each for each in record.operations if each.kind == "stop_gradient")
    mean = next(each for each in record.operations if each.kind == "mean")
    assert mean.inputs == cut.outputs


class Tripled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        return torch.sigmoid(x)

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        return 3 * gradient


def test_what_a_function_with_its_own_gradient_computes_is_not_cut() -> None:
    record = recorded(lambda: Layers(Tripled.apply), (S[0],))
    (sigmoid,) = record.operations
    assert sigmoid.kind == "sigmoid" and sigmoid.native.endswith("in Tripled")
    (x,), (y,) = sigmoid.inputs, sigmoid.outputs
    np.testing.assert_allclose(record.gradients[x], 3 * record.gradients[y])


def test_a_training_pass_moves_the_buffers_and_leaves_the_model_as_it_was() -> None:
    with recorder.building("float64", 0):
        model = nn.Sequential(nn.BatchNorm2d(4, momentum=0.1), nn.Dropout(0.25)).double().eval()
    before = recorder.read_state(model)
    record = recorder.record_pass(model, (X,), "train64")
    after = recorder.read_state(model)
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert not model[0].training
    np.testing.assert_allclose(record.buffers_after[0]["0.running_mean"], 0.1 * X.mean((0, 2, 3)), atol=1e-15)
    np.testing.assert_allclose(record.buffers_after[1]["0.running_mean"], 0.19 * X.mean((0, 2, 3)), atol=1e-15)
    np.testing.assert_array_equal(record.values[record.buffers["0.running_mean"]], np.zeros(4))
    (draw,) = (each for each in record.operations if each.kind == "random")
    assert draw.attributes == {"distribution": "bernoulli", "rate": 0.25}


def test_a_float32_model_runs_in_float64_and_comes_back() -> None:
    model = nn.Linear(4, 3).eval()
    model.table = torch.arange(3.0)
    model.forward = lambda x: F.linear(x, model.weight, model.bias) @ model.table
    before = recorder.read_state(model)
    record = recorder.record_pass(recorder.prepare(model, "float64"), (S[0],), "float64")
    assert all(array.dtype == np.float64 for array in record.values.values())
    after = recorder.read_state(recorder.prepare(model, "float32"))
    assert all(after[name].dtype == np.float32 and np.array_equal(after[name], before[name]) for name in before)
    assert model.table.dtype == torch.float32


def test_tensors_of_functions_are_parameters_and_tied_ones_have_two_names() -> None:
    w = torch.ones(4, 3, dtype=torch.float64, requires_grad=True)
    frozen = {"b": torch.ones(3, dtype=torch.float64)}
    record = recorded(lambda: lambda x: x @ w + frozen["b"], (S[0],))
    assert set(record.parameters) == {"w", "frozen.b"}
    assert record.frozen == {"frozen.b"}
    layer = nn.Linear(4, 4)
    tied = nn.Sequential(layer, nn.Linear(4, 4))
    tied[1].weight = layer.weight
    record = recorded(lambda: tied, (S[0],))
    assert record.parameters["0.weight"] == record.parameters["1.weight"]


def test_half_precision_is_recorded_as_it_is() -> None:
    def model(x: Any) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return F.linear(x, torch.ones(2, 4)).float()

    record = recorded(lambda: model, (S[0].astype(np.float32),), "float32")
    assert "bfloat16" in [each.attributes.get("dtype") for each in record.operations]
    record = recorded(lambda: nn.Linear(4, 2).bfloat16(), (S[0].astype(np.float32),), "float32")
    assert not [each for each in record.operations if each.kind == "cast"]


def test_compiled_lazy_and_scripted_models_are_recorded_as_what_they_are() -> None:
    record = recorded(lambda: torch.compile(nn.Linear(4, 3)), (S[0],))
    assert [each.kind for each in record.operations] == ["transpose", "matmul", "bias_add"]
    record = recorded(lambda: nn.Sequential(nn.LazyLinear(3)), (S[0],))
    assert record.values[record.parameters["0.weight"]].shape == (3, 4)
    record = recorded(lambda: torch.jit.script(nn.Sequential(nn.Linear(4, 3), nn.Tanh())), (S[0],))
    assert [each.kind for each in record.operations][-2:] == ["bias_add", "tanh"]


def test_what_is_random_or_read_as_a_number_is_noted() -> None:
    notes = recorded(lambda: lambda x: x + torch.rand(4), (S[0],)).notes
    assert notes == ("two passes with the same inputs differ: the model is random or keeps a state",)
    (note,) = recorded(lambda: lambda x: x * x.sum().item(), (S[0],)).notes
    assert note.startswith(f"the code reads a tensor as a Python number at {Path(__file__).name}:")


def test_what_is_not_recorded_is_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match="it must return tensors"):
        recorded(lambda: lambda x: "text", (S[0],))
    with pytest.raises(ValueError, match="sparse or quantised"):
        recorded(lambda: lambda x: x.to_sparse(), (S[0],))
    with pytest.raises(ValueError, match="float64 is not possible"):
        recorded(lambda: lambda x: x @ torch.ones(4, 3, dtype=torch.float32), (S[0],))
    with pytest.raises(ValueError, match="this is int; it must be a model"):
        recorder.prepare(3, "float32")


def test_steps_are_those_of_the_authors_optimiser() -> None:
    with recorder.building("float64", 0):
        model = nn.Linear(4, 1)

    def training(model: Any) -> Callable:
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)

        def step(x: Any) -> Any:
            optimizer.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
            schedule.step()
            return loss

        return step

    before = recorder.read_state(model)
    steps, optimiser = recorder.record_steps(model, [(S[0],), (S[1],)], training, None, None)
    assert [each.learning_rate for each in steps] == [0.1, 0.05]
    np.testing.assert_allclose(steps[0].gradient_norm, 0.1, rtol=1e-4)
    np.testing.assert_allclose(steps[0].state["weight/exp_avg"], 0.1 * steps[0].gradients["weight"])
    moved = before["weight"] - 0.1 * np.sign(steps[0].gradients["weight"])
    np.testing.assert_allclose(steps[0].parameters["weight"], moved, atol=1e-6)
    assert (optimiser["class"], optimiser["betas"], optimiser["schedule"]["gamma"]) == ("Adam", [0.9, 0.999], 0.5)
    assert all(np.array_equal(array, before[name]) for name, array in recorder.read_state(model).items())


def test_an_update_by_hand_or_with_a_given_optimiser_is_a_step_too() -> None:
    with recorder.building("float64", 0):
        model = nn.Linear(4, 1)

    def training(model: Any) -> Callable:
        def step(x: Any) -> dict:
            loss = model(x).square().mean()
            loss.backward()
            with torch.no_grad():
                for each in model.parameters():
                    each -= 0.1 * each.grad
            return {"loss": loss.item(), "learning_rate": 0.1}

        return step

    by_hand, _ = recorder.record_steps(model, [(S[0],)], training, None, None)
    given, optimiser = recorder.record_steps(
        model, [(S[0],)], None, lambda model: torch.optim.SGD(model.parameters(), 0.1), lambda y, x: y.square().mean()
    )
    np.testing.assert_array_equal(by_hand[0].parameters["weight"], given[0].parameters["weight"])
    assert by_hand[0].learning_rate == given[0].learning_rate == 0.1
    assert optimiser["class"] == "SGD"
