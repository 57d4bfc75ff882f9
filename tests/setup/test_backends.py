"""The backends are what configs/backend says, also before PyYAML is installed."""

from __future__ import annotations

import pytest
import yaml

from duet.cli.backends import CONFIGS, backends, read_keys

FILES = sorted((CONFIGS / "backend").glob("*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_keys_of_a_backend_are_those_that_yaml_reads(file):
    expected = {key: value for key, value in yaml.safe_load(file.read_text()).items() if isinstance(value, str)}
    assert expected.items() <= read_keys(file).items()


@pytest.mark.parametrize(
    "line",
    ["a: b", "a:   b c  ", "a: b # c", "a: b#c", "a: 'b # c' # d", 'a: "b: c"', "# a: b", "a: .venvs/b", "a-b_c: d"],
)
def test_a_line_is_read_as_yaml_reads_it(line, tmp_path):
    file = tmp_path / "backend.yaml"
    file.write_text(line + "\n")
    assert read_keys(file) == (yaml.safe_load(line) or {})


def test_a_backend_needs_the_first_of_its_packages():
    for file in FILES:
        assert backends()[file.stem].package == yaml.safe_load(file.read_text())["packages"][0]


def test_null_and_nested_values_count_as_absent(tmp_path):
    file = tmp_path / "backend.yaml"
    file.write_text("a: null\nb: ~\nc:\n  d: 1\ne: # nothing\n")
    assert read_keys(file) == dict.fromkeys("abce", "")


def test_the_default_backend_of_training_is_the_first():
    default = next(
        option["backend"]
        for option in yaml.safe_load((CONFIGS / "train.yaml").read_text())["defaults"]
        if "backend" in option
    )
    assert list(backends()) == [default, *sorted(file.stem for file in FILES if file.stem != default)]
    assert all(backend.name == name and backend.title for name, backend in backends().items())
