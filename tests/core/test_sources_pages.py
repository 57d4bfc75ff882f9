"""The pages on the source systems: their paths, names, keys, numbers and pictures; and the formulas of the originals.

The originals are stated here once more, from their formulas in NumPy, and share nothing with the schedules and samplers
of the core.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import yaml
from commands import composed
from omegaconf import OmegaConf
from PIL import Image

from diffusion_core.backend import reference
from diffusion_core.common.random import Stream
from diffusion_core.diffusion.schedule import make_schedule
from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.networks import Program
from diffusion_core.networks.weights import initial_weights, parameter_count
from diffusion_core.sampling.plan import SamplerPlan
from diffusion_core.training.objective import Objective
from experiments.config import build

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "docs" / "sources"
# The experiments of each page; the headings of its tables name them.
PAGES = {
    "landscape": ("landscape",),
    "simple": ("simple",),
    "sixteen_step": ("sixteen_step", "denoising_autoencoder"),
    "double_conv_attention": ("double_conv_attention",),
    "plain": ("plain",),
}
EXPERIMENTS = [name for names in PAGES.values() for name in names]
PAGE_OF = {name: page for page, names in PAGES.items() for name in names}


@cache
def text_of(page: str) -> str:
    return (SOURCES / f"{page}.md").read_text()


@cache
def configuration(name: str, *words: str) -> tuple[dict, DiffusionModel]:
    """Return the configuration of an experiment and its model."""
    cfg = composed("train", f"experiment={name}", *words)
    return OmegaConf.to_container(cfg, resolve=True), build.make_model(cfg)


@cache
def plan_of(name: str, *words: str) -> SamplerPlan:
    config, model = configuration(name, *words)
    sampler = dict(config["sampler"])
    return model.plan(sampler.pop("name"), **sampler)


def rows_under(page: str, heading: str) -> list[list[str]]:
    """Return the cells of the rows of all tables under a heading of the second level, without their headers."""
    (section,) = re.findall(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", text_of(page), re.MULTILINE | re.DOTALL)
    lines = [line for line in section.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    rules = [i for i, row in enumerate(cells) if set("".join(row)) <= set("- :")]
    return [row for i, row in enumerate(cells) if i not in rules and i + 1 not in rules]


def spans(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def code_path(name: str) -> list[list[str]]:
    """Return the rows of the table of an experiment's code path: step, place in Duet, keys."""
    return rows_under(PAGE_OF[name], f"Code path of `{name}`")


@cache
def defined_names(path: Path) -> frozenset[str]:
    """Return the names that a file defines: of functions, classes, constants and `Class.method`."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            inner = [each for each in node.body if isinstance(each, ast.FunctionDef)]
            found |= {f"{node.name}.{each.name}" for each in inner}
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return frozenset(found)


def test_every_page_is_in_the_index_and_every_link_leads_somewhere():
    index = text_of("index")
    for page in PAGES:
        assert f"({page}.md)" in index
    for page in (*PAGES, "index"):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", text_of(page)):
            assert (SOURCES / target).is_file(), f"{page}: {target}"


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_place_in_a_code_path_exists(name):
    for step, place, _ in code_path(name):
        path = None
        assert "/" in spans(place)[0], f"{step}: a path comes first"
        for span in spans(place):
            if "/" in span:
                path = ROOT / span
                assert path.is_file(), f"{step}: {span}"
            else:
                assert span in defined_names(path), f"{step}: {path} does not define {span}"


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_key_in_a_code_path_has_the_stated_value(name):
    config = OmegaConf.create(configuration(name)[0])
    defaults = yaml.safe_load((ROOT / f"configs/experiment/{name}.yaml").read_text())["defaults"]
    groups = {key.removeprefix("override /"): value for entry in defaults for key, value in entry.items()}
    stated = [span for _, _, keys in code_path(name) for span in spans(keys)]
    assert len(stated) > 10
    for span in stated:
        key, _, value = span.partition("=")
        if key in groups:
            assert groups[key] == value, span
        else:
            found = OmegaConf.to_container(OmegaConf.create({"value": OmegaConf.select(config, key, default="no key")}))
            assert found == OmegaConf.to_container(OmegaConf.from_dotlist([f"value={value}"])), span


@pytest.mark.parametrize("page", PAGES)
def test_the_pictures_of_a_page_are_small_and_shown_with_a_description(page):
    shown = dict((target, alt) for alt, target in re.findall(r"!\[([^\]]*)\]\(([^)]+\.png)\)", text_of(page)))
    made = {path.name for path in SOURCES.glob("*.png") if path.stem.rpartition("-")[0] in PAGES[page]}
    assert set(shown) == made and len(made) >= 3
    for target, alt in shown.items():
        path = SOURCES / target
        assert len(alt) > 20 and path.stat().st_size < 150_000, target
        with Image.open(path) as image:
            assert min(image.size) > 100 and np.asarray(image.convert("L")).std() > 5, target


def betas_of(first: float = 1e-4, last: float = 0.02, count: int = 1000) -> np.ndarray:
    return np.linspace(first, last, count)


def number(value: float) -> str:
    return f"{value:.4g}" if value < 1000 and value != int(value) else f"{value:,.0f}"


def quantities(name: str) -> dict[str, list[float]]:
    """Return the numbers of a page's table by the words of their rows, as the originals' formulas give them."""
    config, model = configuration(name)
    schedule, plan, training = model.process.schedule, plan_of(name), config["trainer"]
    last, signal = schedule.steps - 1, float(schedule.alpha[-1])
    facts = {
        "parameters": [parameter_count(model.program)],
        "noise levels": [schedule.steps],
        "alpha and sigma at the first level": [float(schedule.alpha[0]), float(schedule.sigma[0])],
        f"alpha and sigma at t = {last}": [signal, float(schedule.sigma[-1])],
        "rows of the sampler": [plan.rows],
        "network evaluations per image": [plan.rows + int(np.sum(plan.is_guided))],
        "updates": [training["images"] / training["batch"]],
    }
    if name == "landscape":
        facts["shift of the log-SNR by pixels in [0, 1] instead of [-1, 1]"] = [-np.log(4)]
        facts["half-life of the average in updates"] = [np.log(0.5) / np.log(config["ema"]["decay"])]
    if name == "simple":
        facts["log-SNR at t = 299"] = [2 * np.log(signal / float(schedule.sigma[-1]))]
        facts["epochs of 60,000 images"] = [training["images"] / 60_000]
    if name == "sixteen_step":
        lr = config["lr"]
        drops = int(np.ceil(np.log(lr["floor"] / lr["peak"]) / np.log(lr["factor"])))
        facts["rounds of 100 batches until the learning rate is at its floor"] = [50 * drops]
    if name == "double_conv_attention":
        _, colour = configuration(name, "model.in_channels=3", "model.out_channels=3")
        facts["parameters with three channels"] = [parameter_count(colour.program)]
    if name == "plain":
        written = make_schedule("plain_as_written")
        facts["alpha at t = 0 and t = 999 as the text has it"] = [float(written.alpha[0]), float(written.alpha[-1])]
        facts["epochs of 3,200 images"] = [training["images"] / 3200]
    return facts


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_numbers_of_a_page_are_those_of_the_code(name):
    stated = {row[0]: row[1] for row in rows_under(PAGE_OF[name], f"`{name}` in numbers")}
    computed = quantities(name)
    assert stated == {words: "; ".join(map(number, values)) for words, values in computed.items()}


# The originals' noise schedules: sqrt(cumulative product of 1 - beta), or the straight line of the notebook.
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_noise_levels_are_those_of_the_original(name):
    schedule = configuration(name)[1].process.schedule
    if name in ("sixteen_step", "denoising_autoencoder"):
        a = np.linspace(0.0, 1.0, 17)[1:]  # the fraction of noise: x (1 - a) + eps a
        alpha, sigma = 1.0 - a, a
    else:
        product = np.cumprod(1.0 - betas_of(count=300 if name == "simple" else 1000))
        alpha, sigma = np.sqrt(product), np.sqrt(1.0 - product)
    np.testing.assert_allclose(schedule.alpha, alpha, rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(schedule.sigma, sigma, rtol=1e-11)


# The originals' training pairs: fractions (of the image, of the noise) in the network's input and in its target at t.
def eps_pair(t: int, beta: np.ndarray) -> tuple[tuple[float, float], tuple[float, float]]:
    product = np.prod(1.0 - beta[: t + 1])
    return (np.sqrt(product), np.sqrt(1.0 - product)), (0.0, 1.0)


PAIRS = {
    "landscape": lambda t: eps_pair(t, betas_of()),
    "simple": lambda t: eps_pair(t, betas_of(count=300)),
    "double_conv_attention": lambda t: eps_pair(t, betas_of()),
    "plain": lambda t: eps_pair(t, betas_of()),
    "sixteen_step": lambda t: ((1 - (t + 1) / 16, (t + 1) / 16), (1 - t / 16, t / 16)),
    "denoising_autoencoder": lambda t: ((1 - (t + 1) / 16, (t + 1) / 16), (1.0, 0.0)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_the_network_is_trained_on_the_pairs_of_the_original(name):
    config, model = configuration(name)
    options = {key: config["process"][key] for key in ("distance", "first_t", "label_dropout")}
    objective = Objective.for_model(model, seed=0, **options)
    batch = objective.batch(
        np.zeros((40, 2, 2, model.spec.in_channels)), np.zeros(40, int), np.arange(40), dtype=np.float64
    )
    assert (batch.c_in == 1).all() and (batch.weight == 1).all()
    times = np.rint(batch.c_noise).astype(int)
    for i, t in enumerate(times):
        (a, b), (c, d) = PAIRS[name](t)
        found = [batch.alpha[i], batch.sigma[i], batch.target_x0[i], batch.target_eps[i]]
        np.testing.assert_allclose(found, [a, b, c, d], rtol=1e-11, atol=1e-12)
    assert len(set(times)) > 10
    assert config["process"]["first_t"] == (1 if name == "double_conv_attention" else 0)


Network = Callable[[np.ndarray, int], np.ndarray]
T = 24  # timesteps of the reduced processes


def tutorial_loop(eps: Network, x: np.ndarray, z: np.ndarray) -> np.ndarray:
    """t = T-1 .. 1, sigma^2 = beta, and no noise at t = 1."""
    beta = betas_of(1e-3, 0.3, T)
    product = np.cumprod(1.0 - beta)
    for i, t in enumerate(range(T - 1, 0, -1)):
        x = (x - beta[t] / np.sqrt(1.0 - product[t]) * eps(x, t)) / np.sqrt(1.0 - beta[t])
        x = x + (np.sqrt(beta[t]) * z[i] if t > 1 else 0.0)
    return x


def posterior_loop(eps: Network, x: np.ndarray, z: np.ndarray) -> np.ndarray:
    """t = T-1 .. 0, with the variance of the posterior, and no noise at t = 0."""
    beta = betas_of(1e-3, 0.3, T)
    product = np.cumprod(1.0 - beta)
    for i, t in enumerate(range(T - 1, -1, -1)):
        x = (x - beta[t] / np.sqrt(1.0 - product[t]) * eps(x, t)) / np.sqrt(1.0 - beta[t])
        if t > 0:
            x = x + np.sqrt(beta[t] * (1.0 - product[t - 1]) / (1.0 - product[t])) * z[i]
    return x


def output_loop(network: Network, x: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Sixteen times the network's own output; the notebook counts its steps from noise."""
    for step in range(16):
        x = network(x, 15 - step)
    return x


SMALL = "model.image_size=4 model.channels=4"
SMALL_DOUBLE = f"{SMALL} model.channel_multipliers=[1,2] model.embedding=4 model.heads=2"
FEW = f"process.schedule.T={T} +process.schedule.beta_start=1e-3 +process.schedule.beta_end=0.3"
LOOPS = {
    "landscape": (tutorial_loop, f"{SMALL_DOUBLE} {FEW}"),
    "double_conv_attention": (tutorial_loop, f"{SMALL_DOUBLE} {FEW}"),
    "simple": (posterior_loop, f"model.image_size=4 model.channels=[4,4,4] model.embedding=4 {FEW}"),
    "plain": (
        posterior_loop,
        f"model.image_size=4 model.channels=[4] model.bottleneck=4 sampler.clip=null {FEW}",
    ),
    "sixteen_step": (
        output_loop,
        f"{SMALL} model.levels=2 model.embedding=4 model.bottleneck=4 model.bottom_channels=2",
    ),
}


def guided(program: Program, weights: dict, label: np.ndarray, scale: float) -> Network:
    """Return the network as the original calls it: with and without the class, u + scale (c - u)."""

    def call(x: np.ndarray, t: int) -> np.ndarray:
        times = np.full(len(x), float(t))
        c = reference.forward(program, weights, x, times, label)
        if scale == 1.0:
            return c
        u = reference.forward(program, weights, x, times, np.zeros_like(label))
        return u + scale * (c - u)

    return call


@pytest.mark.parametrize("name", LOOPS)
def test_the_plan_computes_the_sampling_loop_of_the_original(name):
    loop, words = LOOPS[name]
    _, model = configuration(name, *words.split())
    plan = plan_of(name, *words.split())
    weights = {key: value.astype(np.float64) for key, value in initial_weights(model.program, 0).items()}
    shape = (2, *model.spec.image_shape)
    x = Stream(0, "sources/x").normal([0], shape)[0]
    z = Stream(0, "sources/z").normal(range(plan.rows), shape)
    label = np.array([1, 4]) if name == "landscape" else np.zeros(2, int)
    network = guided(model.program, weights, label, 3.0 if name == "landscape" else 1.0)
    wanted = loop(network, x, z)
    got = reference.sample(model.program, weights, plan, x, label, lambda row: z[row])
    assert np.std(wanted) > 1e-3
    np.testing.assert_allclose(got, wanted, rtol=1e-9, atol=1e-9)
    assert not np.allclose(got, loop(lambda x, t: 1.01 * network(x, t), x, z), rtol=1e-9, atol=1e-9)
