"""Objects of PyTorch as sides of `duet.diff`: modules, functions, compiled, traced and exported programs."""

from __future__ import annotations

import numpy as np
import pytest

import duet
from diffusion_core.common.errors import DuetError

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
nn, F = torch.nn, torch.nn.functional

X = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)


class Net(nn.Module):
    """A linear layer and an activation, with the same weights each time."""

    def __init__(self, function=F.silu):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.function = nn.Linear(4, 5), function

    def forward(self, x):
        return self.function(self.body(x))


def script() -> Net:
    return torch.jit.script(nn.Sequential(Net().body, nn.SiLU()))


@pytest.mark.parametrize(
    "make",
    [
        script,
        lambda: torch.jit.trace(Net(), torch.from_numpy(X)),
        lambda: torch.compile(Net()),
        lambda: torch.fx.symbolic_trace(Net()),
        lambda: torch.export.export(Net(), (torch.from_numpy(X),)),
        lambda: Net().double(),
        lambda: torch.no_grad()(Net()),
        lambda: (lambda net: lambda x: net(x))(Net()),
    ],
    ids=["script", "trace", "compile", "fx", "export", "double", "decorated", "function"],
)
def test_every_kind_of_object_is_equal_to_its_module_and_differs_from_another(make):
    assert duet.diff(make(), Net(), inputs=X).equal
    (finding,) = duet.diff(make(), Net(F.elu), inputs=X, mode="forward").findings
    assert (finding.kind, finding.status) == ("activation", "verified")


def test_a_function_that_names_no_framework_is_recorded_where_it_can_be_called():
    def halved(x):
        while x.abs().max() > 0.1:  # a method that arrays of NumPy do not have
            x = x * 0.5
        return x

    report = duet.diff(halved, lambda x: x.clone() / 2**5, inputs=X / np.abs(X).max())
    assert not report.equal and "gradient" in report.report["compared"]
    assert duet.diff(lambda x: x.swapaxes(0, 1).astype("float64"), lambda x: x.T * 1.0, inputs=X).equal


def test_random_numbers_are_the_same_on_both_sides_and_told():
    def noisy(x):
        return x + torch.from_numpy(np.random.standard_normal(x.shape)).to(x.dtype)  # noqa: NPY002

    report = duet.diff(noisy, lambda x: noisy(x) * 1.0, inputs=X)
    assert report.equal and any("the model is random" in note for note in report.comparison.notes)
    assert not duet.diff(lambda x: torch.randn(x.shape) + x, lambda x: x, inputs=X).equal


def test_what_a_model_cannot_be_called_with_is_one_line():
    for inputs, said in (((X, X), "takes 2 positional arguments but 3"), (X[:, :3], "shapes cannot be multiplied")):
        with pytest.raises(DuetError, match=f"A: Linear: .*{said}") as error:
            duet.diff(nn.Linear(4, 5), nn.Linear(4, 5), inputs=inputs)
        assert "\n" not in str(error.value)


def test_gradients_are_not_compared_where_a_side_has_none():
    report = duet.diff(torch.no_grad()(Net()), Net(), inputs=X)
    assert report.report["compared"]["gradient"] == "not compared, since A has none"
