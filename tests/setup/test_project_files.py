"""The files that describe the project: licence, citation, changelog, contributing, issue templates, metadata."""

from __future__ import annotations

import ast
import hashlib
import re
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text())
TEMPLATES = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
# What a package is called where its distribution has another name.
MODULES = {"pillow": "PIL", "pyyaml": "yaml", "scikit-learn": "sklearn", "hydra-core": "hydra"}
GIVEN = {"omegaconf"}  # by hydra-core, whose types are those of omegaconf
LIBRARY = ("duet", "diffusion_core", "backends", "experiments", "hydra_plugins")


def test_the_licence_is_the_whole_text_of_apache_2():
    text = (ROOT / "LICENSE").read_bytes()
    assert hashlib.sha256(text).hexdigest() == "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"


def test_the_metadata_name_licence_authors_and_classifiers_that_exist():
    from trove_classifiers import classifiers

    assert PROJECT["license"] == CITATION["license"] == "Apache-2.0" and PROJECT["license-files"] == ["LICENSE"]
    assert PROJECT["authors"] == CITATION["authors"] == [{"name": "The Duet authors"}]
    assert set(PROJECT["classifiers"]) <= classifiers and "urls" not in PROJECT
    assert not [name for name in PROJECT["classifiers"] if name.startswith("License")]  # `license` says it


def test_the_newest_version_of_the_changelog_is_that_of_the_package_and_of_the_citation():
    found = re.findall(r"^## \[([\d.]+)\] - (\d{4}-\d\d-\d\d)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    versions = [Version(version) for version, _ in found]
    assert found[0] == (PROJECT["version"], str(CITATION["date-released"])) and CITATION["version"] == found[0][0]
    assert versions == sorted(versions, reverse=True) and len(set(versions)) == len(versions)
    assert [day for _, day in found] == sorted((day for _, day in found), reverse=True)


def test_every_name_of_duet_in_the_changelog_exists():
    import duet

    named = re.findall(r"`duet\.(\w+)`", (ROOT / "CHANGELOG.md").read_text())
    assert named and set(named) <= set(duet.__all__)


def test_the_page_for_contributors_fits_on_a_screen_and_names_files_that_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    assert text.count("\n") <= 50
    named = [*re.findall(r"\]\(([\w./]+)\)", text), *re.findall(r"tests/\w+/\w+\.py", text), ".ci/run"]
    assert len(named) > 4 and all((ROOT / name).is_file() for name in named)


@pytest.mark.parametrize("file", [path for path in TEMPLATES if path.stem != "config"], ids=lambda path: path.stem)
def test_an_issue_template_asks_something_that_must_be_answered(file):
    form = yaml.safe_load(file.read_text())
    assert form["name"] and form["description"]
    assert any(question["validations"]["required"] for question in form["body"] if "validations" in question)
    for question in form["body"]:
        kinds = {"textarea", "input", "dropdown"}
        assert question["type"] in kinds and question["id"] and question["attributes"]["label"]


def test_there_is_a_template_for_a_bug_a_difference_and_a_question():
    assert {path.stem for path in TEMPLATES} >= {"bug", "parity", "question"}


def test_every_package_that_the_library_imports_is_one_that_it_requires():
    texts = [*PROJECT["dependencies"], *(text for extra in PROJECT["optional-dependencies"].values() for text in extra)]
    names = [Requirement(text).name.lower() for text in texts]
    required = {MODULES.get(name, name.replace("-", "_")) for name in names} | GIVEN
    imported = set()
    for path in (path for folder in LIBRARY for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(node.module.split(".")[0])
    foreign = {name.lower() for name in imported - set(sys.stdlib_module_names) - set(LIBRARY)}
    # Keras comes with TensorFlow.
    assert foreign - {name.lower() for name in required} <= {"keras"}
