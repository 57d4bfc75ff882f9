"""The wheel: what it holds, and that it works outside the repository beside one framework alone."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILD = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"
LIBRARY = ("duet", "diffusion_core", "backends", "experiments", "hydra_plugins")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Build the wheel of this repository."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-c", BUILD, str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return folder / built.stdout.split()[-1]


@pytest.fixture(scope="module")
def site(wheel) -> Path:
    """Unpack the wheel as pip does."""
    folder = wheel.parent / "site"
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


def files_of(folder: Path) -> set[str]:
    found = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(folder).as_posix() for path in found}


def test_the_wheel_holds_every_file_of_the_library_and_the_configurations_and_nothing_else(site):
    expected = {f"{name}/{file}" for name in LIBRARY for file in files_of(ROOT / name)}
    expected |= {f"experiments/configs/{file}" for file in files_of(ROOT / "configs") - {"bench.yaml"}}
    found = files_of(site)
    assert {file for file in found if not file.startswith("duet_diffusion-")} == expected
    assert "experiments/report/templates/run.html" in found and "diffusion_core/metrics/digits.safetensors" in found


def test_contributing_lists_the_names_that_the_wheel_puts_into_site_packages(site):
    listed = re.findall(r"^\| `(\w+)` \|", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    assert {path.name for path in site.iterdir() if not path.name.endswith(".dist-info")} == set(listed)
    assert {path.name for path in (site / "hydra_plugins").iterdir()} == {"duet_launcher"}


def own_folders(folder: Path) -> Path:
    """Make a folder of a user whose own modules and folders have the names of ours."""
    for name in ("experiments", "configs/backend", "features"):
        (folder / name).mkdir(parents=True)
    for name in ("experiments/__init__.py", "backends.py"):
        (folder / name).write_text("raise RuntimeError('the own module of the user')\n")
    (folder / "configs/train.yaml").write_text("mine: true\n")
    return folder


def python(site: Path, folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
    env = {**os.environ, "PYTHONPATH": str(site), **variables}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=env, capture_output=True, text=True, timeout=120
    )


def test_the_unpacked_wheel_finds_its_configurations_and_data_outside_the_repository(site, tmp_path):
    code = """
import duet, sys
assert duet.network("digits") and len(duet.load_dataset("digits")) > 1000
print(duet.layout.CONFIGS, sorted(n for n in ("torch", "tensorflow") if n in sys.modules))
"""
    done = python(site, tmp_path, "-c", code)
    assert done.stdout.split() == [str(site / "experiments/configs"), "[]"], done.stderr
    assert python(site, tmp_path, "-m", "duet", "bench").returncode == 2  # the benchmarks are left out
    refused = python(site, tmp_path, "-m", "duet", "setup", "--cpu")
    assert refused.returncode == 2 and "installed as a package" in refused.stderr


@pytest.mark.parametrize("installed", [True, False], ids=["installed", "checkout"])
def test_a_command_is_not_hidden_by_folders_of_the_user(site, tmp_path, installed):
    """The user's modules have the names of ours, and `duet` starts in their folder."""
    import duet.layout

    folder = own_folders(tmp_path)
    root = site if installed else duet.layout.ROOT
    chosen = {"DUET_TORCH_PYTHON": sys.executable, "DUET_TF_PYTHON": sys.executable}
    done = python(root, folder, "-m", "duet", "compare", "runs=[nowhere,elsewhere]", "out=made", **chosen)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and "nowhere" in done.stderr, done.stderr


@pytest.mark.parametrize(("name", "used"), [("experiments", "network"), ("backends", "default_backend()")])
def test_import_duet_names_the_file_that_hides_a_package_of_ours(site, tmp_path, name, used):
    code = f"import duet; duet.make_schedule('cosine'); print('made'); duet.{used}"
    file = tmp_path / f"{name}.py"
    file.write_text("")
    done = python(site, tmp_path, "-c", code)
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("ImportError")]
    assert repr(name) in line and str(file) in line and "rename" in line
    assert done.stdout == "made\n", "what does not need the hidden package works"
    file.unlink()
    file.with_suffix("").mkdir()  # a folder without __init__.py hides nothing
    assert python(site, tmp_path, "-c", "import duet; duet.network").returncode == 0


SCRIPT = """
import duet
digits = duet.load_dataset("digits", part="train")
model = duet.Model(duet.network("digits"), schedule="cosine", prediction="v")
checkpoint = duet.train(model, digits, images=128, batch=64, label_dropout=0.1)
images = duet.sample(checkpoint, 60, sampler="ddim", steps=3)
print(images.shape, duet.evaluate(images, digits, features="digits", metrics=["frechet"]))
print(duet.layout.ROOT)
"""


@pytest.mark.slow
@pytest.mark.backend
def test_the_installed_wheel_trains_samples_and_evaluates_beside_one_framework(wheel, tmp_path, backend_name):
    """In a new environment whose only other packages are those of the backend's environment."""
    venv.create(tmp_path / "env", with_pip=False)
    base = {"base": str(tmp_path / "env"), "platbase": str(tmp_path / "env")}
    own = Path(sysconfig.get_path("purelib", vars=base))
    zipfile.ZipFile(wheel).extractall(own)
    (own / "packages.pth").write_text(f"{sysconfig.get_path('purelib')}\n")  # without the .pth files in there
    folder = own_folders(tmp_path / "project")
    executable = str(tmp_path / "env/bin/python")
    env = {name: value for name, value in os.environ.items() if not name.startswith(("DUET_", "PYTHON"))}
    env["OMP_NUM_THREADS"] = "1"

    def run(*words: str, cwd: Path = folder) -> subprocess.CompletedProcess:
        return subprocess.run([executable, *words], cwd=cwd, env=env, capture_output=True, text=True, timeout=300)

    done = run("-c", SCRIPT, cwd=tmp_path)
    assert done.returncode == 0 and "(60, 8, 8, 1)" in done.stdout and str(own) in done.stdout, done.stderr
    duet = ("-m", "duet")
    small = ("debug=fast", "backend.threads=1", "hydra.run.dir=made/run")
    done = run(*duet, "train", "experiment=digits", *small)  # with the backend that this environment has
    assert done.returncode == 0 and (folder / "made/run/report.html").exists(), done.stderr
    assert f"  name: {backend_name}\n" in (folder / "made/run/config.yaml").read_text()
    done = run(*duet, "sample", "from=made/run", "sample.count=2", "sampler.steps=2", "out=made/samples")
    assert done.returncode == 0 and (folder / "made/samples").is_dir(), done.stderr
    other = {"torch": "tf", "tf": "torch"}[backend_name]
    done = run(*duet, "train", f"backend={other}")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert f"but what backend={backend_name} needs" in done.stderr and f"DUET_{other.upper()}_PYTHON" in done.stderr
    assert run(*duet, "demo").returncode == 2  # it needs both
    assert "installed as a package" in run(*duet, "--help").stdout
