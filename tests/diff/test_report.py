"""What `duet diff` says about a comparison: on the terminal, as JSON, as a page, and what the user accepts."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from made_comparison import comparison, norm_epsilon

from diffusion_core.common.errors import DuetError
from diffusion_core.parity.diff.findings import Place
from experiments.model_diff.accepted import Accepted, entry, mark, read_accepted
from experiments.model_diff.result import histograms, read_weights, summary, to_report, verdict, write


def test_the_summary_says_verdict_place_cause_and_report_in_four_lines(tmp_path):
    report = to_report(comparison(norm_epsilon()))
    lines = summary(report, tmp_path / "report.html").splitlines()
    assert lines[0].startswith("not equal: outputs differ by 1.9e-2 (float64)")
    assert "A down.0.norm1, torch_model.py:52  h = self.norm1(x) | B enc0_norm1, keras_model.py:88" in lines[1]
    assert "epsilon is 1e-05 in A; epsilon is 0.001 in B (verified, 2.4e-16 left of 3.1e-3)" in lines[2]
    assert lines[3].endswith("report.html")


def test_later_benign_and_accepted_findings_have_a_line_each():
    findings = [
        norm_epsilon(),
        norm_epsilon(kind="gelu_form", status="likely", title="the form of GELU"),
        norm_epsilon(benign=True, title="a slope in float32"),
        norm_epsilon(accepted="as published"),
        norm_epsilon(kind="", status="unknown", title="", a=None, a_does="", b_does=""),
    ]
    text = summary(to_report(comparison(*findings)))
    starts = [line.split(":")[0].strip() for line in text.splitlines()]
    assert starts == ["not equal", "first", "cause", "then", "then", "known", "benign", "note"]
    assert "(likely, " in text and "as published" in text and "A nothing there | B " in text
    assert "the cause is not known (differs by 3.1e-3)" in text


@pytest.mark.parametrize(
    ("findings", "said"),
    [
        ((), "equal to rounding"),
        ((norm_epsilon(benign=True),), "equal to rounding"),
        ((norm_epsilon(accepted="known"),), "equal to rounding, but for 1 accepted difference"),
        ((norm_epsilon(mode="training"),), "equal in the forward pass, not equal in training mode"),
        (
            (norm_epsilon(mode="gradient"), norm_epsilon(accepted="x")),
            "equal in the forward pass, not equal in gradients",
        ),
        ((norm_epsilon(), norm_epsilon(mode="training")), "not equal"),
    ],
)
def test_the_verdict_follows_from_the_findings(findings, said):
    made = comparison(*findings)
    assert verdict(made) == said
    assert made.equal == said.startswith("equal to rounding")


def test_the_json_has_the_documented_fields_and_the_page_every_place(tmp_path):
    made = comparison(norm_epsilon(), norm_epsilon(kind="gelu_form", b=Place("time<1>", "k.py:3", "x < 3 & y")))
    page = write(to_report(made, "python3 -m duet diff a b"), tmp_path / "new")
    report = json.loads((tmp_path / "new/report.json").read_text("utf-8"))
    documented = {
        "format", "title", "created", "command", "equal", "verdict", "a", "b", "findings", "compared", "outputs",
        "operations", "parameters", "unmatched", "histograms", "notes", "options",
    }  # fmt: skip
    assert set(report) == documented
    assert report["findings"][0]["accept"] == {
        "kind": "norm_epsilon", "a": "down.0.norm1", "b": "enc0_norm1", "reason": "",
    }  # fmt: skip
    text = page.read_text("utf-8")
    for shown in ("torch_model.py:52", "keras_model.py:88", "epsilon is 0.001", "python3 -m duet diff a b", "verified"):
        assert shown in text
    assert "time&lt;1&gt;" in text and "time<1>" not in text
    assert 'href="#op-20"' in text and 'id="op-20"' in text
    assert not re.search(r"(?:src|href)=\"(?!data:|#)", text)


def test_a_page_without_operations_or_outputs_is_made_too(tmp_path):
    made = comparison(rows=0, outputs={}, histograms={}, parameters=(), unmatched=((), ()), notes=(), compared={})
    assert "Equal to rounding" in write(to_report(made), tmp_path).read_text("utf-8")


def test_errors_that_are_no_numbers_are_shown_as_such(tmp_path):
    made = comparison(norm_epsilon(error=float("inf"), left=float("nan"), status="unknown"))
    made = replace(made, rows=tuple(replace(row, own=float("nan")) for row in made.rows))
    report = to_report(made)
    assert "differs by ∞" in summary(report)
    write(report, tmp_path)
    assert json.loads((tmp_path / "report.json").read_text())["operations"][0]["own"] is None


def test_histograms_count_every_number_and_their_difference_is_taken_in_one_layout():
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 5))
    found = histograms(x, np.moveaxis(x, 1, -1) + 0.25)
    assert sum(found["a"]) == sum(found["b"]) == sum(found["difference"]) == x.size
    assert np.count_nonzero(found["difference"]) <= 2  # a shift is one number, on an edge of two bins
    assert "difference" not in histograms(x, x[:1])
    assert histograms(x * np.nan, x) is None


# --- what the user accepts -----------------------------------------------------------------------------------------


def test_the_entry_of_a_finding_accepts_it_and_no_other():
    first, other = norm_epsilon(), norm_epsilon(b=Place("enc1_norm1"), a=Place("down.1.norm1"))
    accepted = Accepted(**{**entry(first), "reason": "as published"})
    made = mark(comparison(first, other), [accepted])
    assert [finding.accepted for finding in made.findings] == ["as published", ""]
    assert not made.equal and made.notes == comparison().notes
    assert mark(comparison(first), [accepted]).equal


@pytest.mark.parametrize(
    ("given", "fits"),
    [
        ({}, True),
        ({"a": "down.0.norm1"}, True),
        ({"a": "down.*", "b": "enc?_norm1"}, False),  # a question mark is a letter
        ({"a": "down.*"}, True),
        ({"b": "dec0_norm1"}, False),
        ({"mode": "training"}, False),
    ],
)
def test_an_entry_names_layers_or_all(given, fits):
    assert Accepted("norm_epsilon", reason="r", **given).fits(norm_epsilon()) == fits
    assert not Accepted("gelu_form", reason="r", **given).fits(norm_epsilon())


def test_an_entry_that_fits_nothing_is_told():
    made = mark(comparison(norm_epsilon()), [Accepted("gelu_form", b="mlp", reason="r")])
    assert made.notes[-1] == "accepted, but not found: 'gelu_form' at b 'mlp'"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([{"kind": "x", "a": "y", "reason": "r"}], ""),
        ({"kind": "x", "reason": "r"}, ""),
        ([{"kind": "x"}], "has no reason"),
        ([{"reason": "r"}], "has no kind"),
        ([{"kind": "x", "layer": "y", "reason": "r"}], "'layer' was given"),
        ([{"kind": 3, "reason": "r"}], "kind: 3 was given; it must be a text"),
        (["x"], "must be an object"),
        ("{", "must be a JSON file"),
    ],
)
def test_files_of_accepted_differences_are_checked(tmp_path, content, said):
    path = tmp_path / "accepted.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    if said:
        with pytest.raises(DuetError, match=said):
            read_accepted(path)
    else:
        assert read_accepted(path)[0].kind == "x"
    with pytest.raises(DuetError, match="there is no file"):
        read_accepted(tmp_path / "missing.json")


def test_weights_are_a_word_or_a_file_of_names(tmp_path):
    assert read_weights("map", None) == ({}, "")
    assert read_weights("copy", "") == ({}, "a-to-b")
    assert read_weights("copy", "b-to-a") == ({}, "b-to-a")
    path = tmp_path / "names.json"
    path.write_text('{"a.weight": "b/kernel"}')
    assert read_weights(str(path), None) == ({"a.weight": "b/kernel"}, "")
    path.write_text('["a"]')
    for wrong in (str(path), str(tmp_path / "missing.json"), "names"):
        with pytest.raises(DuetError, match="--weights"):
            read_weights(wrong, None)


@pytest.mark.parametrize(
    ("a", "b", "shown"),
    [
        ("torch_model.py:build", "keras_model.py:build", "torch_model.py:build against keras_model.py:build"),
        ("/x/old/net.py:f", "/x/new/net.py:f", "old/net.py:f against new/net.py:f"),
        ("/x/net.py:f", "/x/net.py:f", "net.py:f against net.py:f"),
        ("runs/a/", "runs/b", "a against b"),
    ],
)
def test_the_title_names_the_folders_that_tell_the_sides_apart(a, b, shown):
    assert to_report(comparison(a=a, b=b))["title"] == shown
