"""Files of torch.save are read without PyTorch, as PyTorch reads them, and nothing in them is run."""

from __future__ import annotations

import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffusion_core.common.errors import DuetError
from diffusion_core.files.torch_file import flatten, is_torch_file, read_torch_file

torch = pytest.importorskip("torch")

BASE = torch.arange(24, dtype=torch.float32).reshape(4, 6)
TENSORS = {
    "plain": BASE, "transposed": BASE.T, "slice": BASE[1:3, ::2], "row": BASE[2], "number": torch.tensor(3.5),
    "empty": torch.zeros(0, 3), "expanded": torch.tensor([2.0]).expand(5), "parameter": torch.nn.Parameter(BASE + 1),
    **{
        str(dtype).removeprefix("torch."): BASE.to(dtype)
        for dtype in (
            torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
            torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2,
        )
    },
}  # fmt: skip


def to_numpy(value: Any) -> np.ndarray:
    value = value.detach()
    narrow = (torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)
    return (value.float() if value.dtype in narrow else value).numpy()


@pytest.mark.parametrize("protocol", [2, 4])
def test_every_tensor_is_read_as_pytorch_reads_it(protocol, tmp_path):
    nested = OrderedDict(TENSORS) | {"more": [TENSORS["plain"], {"x": BASE}], 5: {"y": BASE}, "text": "t", "none": None}
    torch.save(nested, tmp_path / "a.pt", pickle_protocol=protocol)
    assert is_torch_file(tmp_path / "a.pt")
    found = read_torch_file(tmp_path / "a.pt")
    expected = flatten(nested, lambda name, value: to_numpy(value) if isinstance(value, torch.Tensor) else None)
    assert list(found) == list(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)


class Part(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
        self.register_buffer("table", torch.arange(3.0))
        self.scale = torch.nn.Parameter(torch.ones(2))


def test_a_whole_module_is_read_as_its_state_dict(tmp_path):
    net = Part()
    torch.save({"net": net, "step": 3}, tmp_path / "a.pt")
    found = read_torch_file(tmp_path / "a.pt")
    assert found.keys() == {f"net.{name}" for name in net.state_dict()}
    for name, value in net.state_dict().items():
        np.testing.assert_array_equal(found[f"net.{name}"], value.numpy())


class Code:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_nothing_is_run_and_other_objects_are_left_out(tmp_path):
    import argparse

    others = {"code": Code(tmp_path / "ran"), "options": argparse.Namespace(a=BASE), Path("key"): 1, "set": {1, 2}}
    torch.save(others | {"state_dict": {"w": BASE}}, tmp_path / "a.pt")
    found = read_torch_file(tmp_path / "a.pt")
    assert list(found) == ["state_dict.w"] and not (tmp_path / "ran").exists()
    torch.save(others, tmp_path / "a.pt")
    with pytest.raises(DuetError, match=r"a.pt: it holds no tensors"):
        read_torch_file(tmp_path / "a.pt")
    assert not (tmp_path / "ran").exists()


def test_a_corrupted_file_is_refused_or_read_as_it_was_written(tmp_path):
    torch.save({"a": BASE, "b": [BASE * 2]}, tmp_path / "a.pt")
    whole = (tmp_path / "a.pt").read_bytes()
    rng, refused = np.random.default_rng(0), 0
    for _ in range(300):
        content = bytearray(whole)
        content[rng.integers(len(content))] ^= 1 << rng.integers(8)
        content = content if rng.integers(4) else content[: rng.integers(len(content))]
        (tmp_path / "b.pt").write_bytes(bytes(content))
        try:
            found = read_torch_file(tmp_path / "b.pt")
        except DuetError as error:
            refused += str(error).count("b.pt")
            continue
        np.testing.assert_array_equal(found["a"], BASE.numpy())
        np.testing.assert_array_equal(found["b.0"], 2 * BASE.numpy())
    assert refused > 100


def test_a_tensor_beyond_its_numbers_is_refused(tmp_path):
    torch.save({"a": BASE}, tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as old, zipfile.ZipFile(tmp_path / "b.pt", "w") as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, content[:40] if name.endswith("data/0") else content)
    with pytest.raises(DuetError, match=r"b.pt: .*a tensor reaches beyond its numbers"):
        read_torch_file(tmp_path / "b.pt")
    (tmp_path / "c.pt").write_bytes(b"garbage")
    assert not is_torch_file(tmp_path / "c.pt") and not is_torch_file(tmp_path / "none")


def test_a_file_nested_without_end_is_refused(tmp_path):
    content: Any = BASE
    for _ in range(200):
        content = [content]
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(DuetError, match=r"a.pt: it is nested too deeply"):
        read_torch_file(tmp_path / "a.pt")
