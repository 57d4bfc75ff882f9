"""Numbers with their protocol: coverage of intervals, columns that do not mix, and sets read from files."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import stats
from scipy.special import softmax

from diffusion_core.common.errors import DuetError
from diffusion_core.common.random import Stream
from diffusion_core.data import Loader, load_dataset
from diffusion_core.data.shards import Shards
from diffusion_core.data.source import Source
from diffusion_core.data.survey import survey
from diffusion_core.data.toys import toy_mixture
from diffusion_core.metrics import blocks
from diffusion_core.metrics.difference import difference
from diffusion_core.metrics.evaluate import METRICS, evaluate, random_sets, sets_from_sizes
from diffusion_core.metrics.files import join, read_sample_set, write_features
from diffusion_core.metrics.frechet import frechet_distance
from diffusion_core.metrics.intervals import difference_interval, jackknife_interval, two_sample_interval
from diffusion_core.metrics.metric import FeatureKind, SampleSet
from diffusion_core.metrics.protocol import Number, columns, comparable_values, differences, nested, read_numbers
from diffusion_core.runs.run_directory import write_json, write_samples
from diffusion_core.statistics.proportion import wilson_interval

KIND = FeatureKind("small", {"kind": "small", "resize": "none"})
FACTS = {"name": "toy", "split": "train", "count": 60, "sha256": "ab"}


def sets_of(seed: int = 0, count: int = 30, kind: FeatureKind = KIND) -> tuple[SampleSet, SampleSet]:
    rng = np.random.default_rng(seed)
    samples = {"features": rng.standard_normal((count, 3)) + 0.5, "images": make_images(count, seed)}
    reference = {"features": np.random.default_rng(9).standard_normal((60, 3)), "images": make_images(60, 9)}
    return SampleSet(samples, {"count": count}, kind), SampleSet(reference, FACTS, kind)


def make_images(count: int, seed: int = 0, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 4, 4, channels)).astype(np.uint8)


def numbers_of(metrics: dict, seed: int = 0, count: int = 30, **options) -> dict[str, Number]:
    samples, reference = sets_of(seed, count)
    found = evaluate(metrics, samples, random_sets(count, 3, 0), reference, **options)
    return {number.name: number for number in found.numbers}


# Sets and intervals


def test_random_sets_are_a_partition_drawn_by_their_stream():
    sets = random_sets(20, 3, seed=5)
    order = Stream(5, "evaluate/sets").permutation(20)
    np.testing.assert_array_equal(sets.members[0], np.sort(order[:7]))
    np.testing.assert_array_equal(np.sort(np.concatenate(sets.members)), np.arange(20))
    assert sets.facts == {"by": "stream evaluate/sets", "seed": 5, "count": 3}
    several = sets_from_sizes([4, 2, 5])
    assert [list(part) for part in several.members][1] == [4, 5] and several.facts["by"] == "given"
    for refused in (
        lambda: random_sets(20, 2, 0),
        lambda: random_sets(5, 3, 0),
        lambda: sets_from_sizes([4, 4]),
        lambda: sets_from_sizes([4, 1, 4]),
    ):
        with pytest.raises(DuetError, match="sets"):
            refused()


def test_number_is_that_of_all_samples_and_its_interval_is_a_jackknife_over_sets():
    samples, reference = sets_of()
    sets = random_sets(30, 3, 0)
    (number,) = evaluate({"frechet": {}}, samples, sets, reference).numbers
    x, y = samples.arrays["features"], reference.arrays["features"]
    assert number.name == "small Fréchet distance" and number.value == frechet_distance(x, y)
    without = [frechet_distance(np.delete(x, part, axis=0), y) for part in sets.members]
    assert number.without == pytest.approx(without)
    expected = jackknife_interval(number.value, without, 0.95)
    assert (number.interval.low, number.interval.high) == pytest.approx((max(0, expected.low), expected.high))
    assert number.interval.low < number.value < number.interval.high


def test_images_without_a_set_are_read_in_blocks_and_give_the_numbers_of_a_copy(monkeypatch):
    monkeypatch.setattr(blocks, "_BLOCK_BYTES", 8 * 64)  # some four images
    labels, (samples, reference) = np.arange(60) % 2, sets_of()
    read = []

    class Watched(Shards):
        def __getitem__(self, key):
            found = super().__getitem__(key)
            read.append(found.size)
            return found

        def __array__(self, *given, **options):
            raise AssertionError("all images were requested")

    parts = samples.arrays | {"labels": labels[:30]}
    given = replace(samples, arrays=parts | {"images": Watched([parts["images"]])})
    reference = replace(reference, arrays=reference.arrays | {"labels": labels})
    sets = random_sets(30, 3, 0)
    numbers = evaluate({"colour": {}, "spread": {}}, given, sets, reference).numbers
    # A small class is read at once; the 20 images of two sets never are.
    assert len(numbers) == 5 and max(read) <= 15 * parts["images"][0].size
    for number in numbers:
        metric = METRICS[number.protocol["metric"]]
        measure = metric.fit(reference.arrays, 0)
        copies = ({part: np.delete(parts[part], some, axis=0) for part in metric.samples} for some in sets.members)
        assert number.without == tuple(measure(copy).numbers[number.protocol["number"]] for copy in copies)


def test_jackknife_interval_covers_the_truth_and_equals_the_bootstrap_of_set_means_for_a_mean():
    rng, held = np.random.default_rng(0), []
    spread = np.array([np.var(rng.standard_normal(60), ddof=1) for _ in range(4000)]).mean()
    for _ in range(150):
        x = rng.standard_normal(60)
        without = [np.var(np.delete(x, part), ddof=1) for part in np.array_split(np.arange(60), 5)]
        interval = jackknife_interval(np.var(x, ddof=1), without, 0.95)
        held.append(interval.low <= spread <= interval.high)
    assert np.mean(held) == pytest.approx(0.93, abs=0.06)
    parts = x.reshape(3, 20)
    means = jackknife_interval(x.mean(), [np.delete(parts, k, axis=0).mean() for k in range(3)], 0.95)
    own = jackknife_interval(parts.mean(), ((parts.sum() - parts.sum(axis=1)) / 40).tolist(), 0.95)
    assert (means.low, means.high) == pytest.approx((own.low, own.high))
    assert (
        jackknife_interval(1.0, [1.0, np.nan, 1.0], 0.95) is None and jackknife_interval(1.0, [1.0, 1.0], 0.95) is None
    )


def drawn(rng: np.random.Generator, samples: int = 60, reference: int = 80, shift: float = 0.5) -> tuple:
    """Features of samples and of a reference that differ by a known amount."""
    real = rng.standard_normal((reference, 3))
    return SampleSet({"features": rng.standard_normal((samples, 3)) + shift}, {}, KIND), SampleSet(
        {"features": real}, FACTS, KIND
    )


def test_the_interval_over_both_draws_covers_the_population_and_that_over_samples_does_not():
    """The kernel distance is unbiased, so its expectation over both draws is that of the populations."""
    rng, held = np.random.default_rng(0), []

    def expected(a: float, b: float) -> float:
        """E (x y / 3 + 1)^3 of normal x and y with the means a and b in each of three dimensions."""
        first, second, third = a * b, (1 + a**2) * (1 + b**2), (a**3 + 3 * a) * (b**3 + 3 * b)  # moments of x_i y_i
        variance, skewness = second - first**2, third - 3 * first * second + 2 * first**3
        mean = first + 1
        return mean**3 + 3 * mean * variance / 3 + skewness / 9

    truth = expected(0.5, 0.5) + expected(0, 0) - 2 * expected(0.5, 0)
    for _ in range(60):
        sides = drawn(rng, 120, 120)
        (number,) = evaluate(
            {"kernel": {"subsets": 0}}, sides[0], random_sets(120, 15, 0), sides[1], reference_sets=15
        ).numbers
        held.append([i.low <= truth <= i.high for i in (number.interval, number.interval_both)])
    samples, both = np.mean(held, axis=0)
    assert both > 0.88 and samples < both - 0.05


def test_a_difference_of_models_on_shared_noise_has_a_narrow_interval_of_its_own():
    rng, held, widths = np.random.default_rng(0), [], []

    def both(noise: np.ndarray, real: np.ndarray) -> list[Number]:
        reference = SampleSet({"features": real}, FACTS, KIND)
        sides = (SampleSet({"features": scale * noise}, {}, KIND) for scale in (1.1, 1.12))
        return [evaluate({"frechet": {}}, s, random_sets(60, 15, 0), reference).numbers[0] for s in sides]

    found = [both(rng.standard_normal((60, 3)), np.random.default_rng(5).standard_normal((400, 3))) for _ in range(30)]
    truth = np.mean([b.value - a.value for a, b in found])  # the expected difference at this n for this reference
    for a, b in found:
        apart = difference(a, b)
        held.append(apart.interval.low <= truth <= apart.interval.high)
        widths.append((apart.interval.high - apart.interval.low) / (a.interval.high - a.interval.low))
    assert np.mean(held) > 0.85 and np.median(widths) < 0.2


def test_intervals_of_differences_need_sets_in_one_order():
    own, both = difference_interval((1.0, 2.0), ([1.0, 1.1, 0.9], [2.0, 2.1, 1.9]), 0.95)
    assert (own.low, own.high) == (pytest.approx(1.0), pytest.approx(1.0)) and both is None
    assert difference_interval((1.0, 2.0), ([1.0, 1.1, 0.9], [2.0, 2.1]), 0.95) == (None, None)
    assert two_sample_interval(1.0, [1.0, 1.1, 0.9], [], 0.95) is None
    wide = two_sample_interval(1.0, [1.0, 1.1, 0.9], [1.0, 1.1, 0.9], 0.95)
    one = two_sample_interval(1.0, [1.0, 1.1, 0.9], [1.0, 1.0, 1.0], 0.95)
    assert wide.high - wide.low < 1.42 * (one.high - one.low)  # more degrees of freedom, twice the variance
    assert one.high - 1 == pytest.approx(
        stats.t.ppf(0.975, 2) * np.std([3 - 2 * v for v in (1, 1.1, 0.9)], ddof=1) / 3**0.5
    )
    for a, b in (([1.0, 1.1, 0.9], FACTS), ([1.0, 1.1, 0.9], {**FACTS, "split": "test"})):
        numbers = [Number("x", 1.0, {"reference": r}, None, tuple(a)) for r in (FACTS, b)]
        if b is not FACTS:
            with pytest.raises(DuetError, match="different protocols"):
                difference(*numbers)


def test_the_floor_is_what_images_of_the_reference_score():
    samples, reference = drawn(np.random.default_rng(0), samples=40)
    (number,) = evaluate({"frechet": {}}, samples, random_sets(40, 3, 0), reference, floors=4).numbers
    real, scores = reference.arrays["features"], []
    for k in range(4):
        rows = (Stream(0, "evaluate/floor").uniform(np.array([k]), 40)[0] * 80).astype(int)
        scores.append(frechet_distance(real[rows], real))
    assert number.floor == pytest.approx(np.mean(scores), rel=1e-12) and 0 < number.floor < number.value
    (number,) = evaluate({"kernel": {}}, samples, random_sets(40, 3, 0), reference, floors=4).numbers
    assert number.floor is None  # it is unbiased


def test_the_corrected_value_has_no_bias_of_first_order_and_is_left_out_for_few_samples():
    rng, d, plain, corrected = np.random.default_rng(0), 8, [], []
    reference = SampleSet({"mu": np.zeros(d), "sigma": np.eye(d)}, {"statistics": {"mu": d}}, KIND)
    for _ in range(40):
        samples = SampleSet({"features": rng.standard_normal((120, d))}, {}, KIND)
        (number,) = evaluate({"frechet": {}}, samples, random_sets(120, 12, 0), reference).numbers
        plain.append(number.value)
        corrected.append(number.corrected)
    error = np.std(corrected) / np.sqrt(len(corrected))
    assert np.mean(plain) > 0.2 and abs(np.mean(corrected)) < 3 * error + 0.01  # the truth is 0
    few = SampleSet({"features": rng.standard_normal((20, d))}, {}, KIND)
    assert evaluate({"frechet": {}}, few, random_sets(20, 5, 0), reference).numbers[0].corrected is None


def test_fractions_have_wilsons_interval_and_are_never_certain():
    labels = np.arange(200) % 4
    probabilities = np.eye(4)[labels]
    samples = SampleSet({"labels": labels, "probabilities": probabilities, "images": make_images(200)}, {}, KIND)
    reference = SampleSet({"labels": labels, "images": make_images(50, 9)}, FACTS)
    metrics = {"agreement": {}, "memorisation": {}}
    found = {n.protocol["number"]: n for n in evaluate(metrics, samples, random_sets(200, 20, 0), reference).numbers}
    for key, value in (("rate", 1.0), ("memorised", 0.0), ("copies", 0.0)):
        expected = wilson_interval(200 * value, 200)
        assert found[key].value == value and found[key].trials == 200
        assert (found[key].interval.low, found[key].interval.high) == (expected.low, expected.high)
    recall = numbers_of({"manifold": {}})["small recall"]
    assert recall.interval.high > recall.interval.low


def test_numbers_of_earlier_versions_without_the_new_entries_are_read():
    number = numbers_of({"frechet": {}}, reference_sets=3, floors=1)["small Fréchet distance"]
    assert Number.from_plain(json.loads(json.dumps(number.plain))) == number
    old = {k: v for k, v in number.plain.items() if k not in (
        "interval_both", "without_reference", "floor", "corrected", "trials")}  # fmt: skip
    read = Number.from_plain(old)
    assert read.interval == number.interval and read.interval_both is read.floor is read.corrected is None


def test_the_default_is_twenty_sets_or_fewer_of_two():
    assert [len(random_sets(count, None, 0).members) for count in (100, 40, 31, 6)] == [20, 20, 15, 3]
    with pytest.raises(DuetError, match="3 sets of at least 2 need 6"):
        random_sets(5, None, 0)


def test_metric_without_its_arrays_is_skipped_with_the_reason():
    samples, reference = sets_of(count=12)
    metrics = {"frechet": {}, "score": {}, "agreement": {}, "manifold": {"nearest_density": 11}}
    found = evaluate(metrics, samples, random_sets(12, 3, 0), reference)
    assert [number.name for number in found.numbers] == ["small Fréchet distance"]
    assert found.skipped["score"] == "it needs probabilities, which the features small do not have"
    assert "labels of the samples, probabilities of the samples, labels of the ref" in found.skipped["agreement"]
    assert "11 nearest neighbours need more" in found.skipped["manifold"]
    with pytest.raises(DuetError, match=r"metrics\.kernal\.name: 'kernal' .* Did you mean 'kernel'"):
        evaluate({"kernal": {}}, samples, random_sets(12, 3, 0), reference)
    with pytest.raises(DuetError, match=r"option of metrics\.kernel 'kernel': 'subset'"):
        evaluate({"kernel": {"subset": 3}}, samples, random_sets(12, 3, 0), reference)
    other = replace(reference, kind=FeatureKind("small", {"kind": "small", "resize": "bilinear"}))
    with pytest.raises(DuetError, match="they must be the same"):
        evaluate({"frechet": {}}, samples, random_sets(12, 3, 0), other)


def test_agreement_needs_equal_class_names_and_reports_unknown_ones(tmp_path: Path):
    labels = np.arange(12) % 3
    seen = {"labels": labels, "probabilities": np.eye(3)[labels]}
    known, asked = ("0", "1", "2"), ("1", "0", "2")

    def evaluated(features: tuple[str, ...], reference: tuple[str, ...]):
        known = SampleSet(
            {"labels": labels, "features": np.ones((12, 1))}, FACTS, replace(KIND, classes=features), reference
        )
        write_features(tmp_path / "known.npz", known)
        both = (known, read_sample_set(tmp_path / "known.npz"))
        return [evaluate({"agreement": {}}, SampleSet(seen, {}, s.kind), random_sets(12, 3, 0), s) for s in both]

    for found in evaluated(known, known):
        assert found.numbers[0].value == 1 and found.numbers[0].protocol["classes"] == "of the same names"
    for found in evaluated(known, asked):
        assert not found.numbers
        assert found.skipped["agreement"].endswith("features are 0, 1, 2, and those of the reference 1, 0, 2")
    for features, reference, unknown in (((), asked, "the features"), (known, (), "the reference")):
        for found in evaluated(features, reference):
            assert found.numbers[0].protocol["classes"] == f"not compared by name: the names of {unknown} are not known"


def test_only_published_features_give_a_number_called_fid():
    samples, reference = (replace(s, kind=FeatureKind("Inception", {}, is_published=True)) for s in sets_of())
    metrics = {"frechet": {}, "kernel": {}, "colour": {}, "manifold": {}}
    names = [number.name for number in evaluate(metrics, samples, random_sets(30, 3, 0), reference).numbers]
    assert {"FID", "KID", "colour histogram distance", "Inception precision"} <= set(names)
    assert not any("ID" in name for name in numbers_of(metrics))
    samples, reference = (
        replace(s, kind=replace(s.kind, departure="antialiased resize")) for s in (samples, reference)
    )
    names = [number.name for number in evaluate(metrics, samples, random_sets(30, 3, 0), reference).numbers]
    assert {"FID, antialiased resize", "colour histogram distance", "Inception recall, antialiased resize"} <= set(
        names
    )
    assert not {"FID", "KID"} & set(names)


def test_public_objects_of_data_and_metrics_print_one_short_line():
    samples, reference = sets_of(count=12)
    sets = random_sets(12, 3, 0)
    result = evaluate({"frechet": {}, "colour": {}}, samples, sets, reference)
    data = load_dataset("shapes", count=5, size=8)
    objects = [samples, sets, result, *result.numbers, *result.results.values(), data, Loader(data, 0)]
    objects += [Loader(data, 0).batch(0, 3), toy_mixture("grid"), Shards([data.images]), survey(data)]
    objects.append(Source(data.images, data.labels, data.class_names, "shapes"))
    for one in objects:
        assert "\n" not in repr(one) and len(repr(one)) <= 110, repr(one)
    assert repr(result.numbers[0]).startswith("Number('small Fréchet distance', ")


# Protocols and columns


def test_protocol_has_everything_that_a_number_depends_on_and_nothing_else():
    number = numbers_of({"kernel": {"subsets": 3}}, confidence=0.9)["small kernel distance"]
    assert number.protocol == {
        "metric": "kernel", "number": "distance", "options": {"subsets": 3, "size": 1000}, "seed": 0, "confidence": 0.9,
        "samples": {"count": 30, "sets": {"by": "stream evaluate/sets", "seed": 0, "count": 3}},
        "reference": FACTS, "features": dict(KIND.facts),
    }  # fmt: skip
    colour = numbers_of({"colour": {}})["colour histogram distance"]
    assert "features" not in colour.protocol and colour.protocol["quantised"] == "uint8"
    # Where samples of other images are compared with the same reference, the protocol is the same.
    assert numbers_of({"colour": {}}, seed=4)["colour histogram distance"].protocol == colour.protocol
    assert numbers_of({"colour": {}}, count=29)["colour histogram distance"].protocol != colour.protocol


def test_facts_of_the_training_images_are_in_the_protocol_of_memorisation_only():
    samples, reference = sets_of()
    other = replace(reference, facts={**reference.facts, "training": {"sha256": "cd"}})
    metrics = {"memorisation": {}, "colour": {}}
    one, two = (evaluate(metrics, samples, random_sets(30, 3, 0), side).numbers for side in (reference, other))
    changed = {a.protocol["metric"] for a, b in zip(one, two, strict=True) if a.protocol != b.protocol}
    assert changed == {"memorisation"}


def test_reference_images_may_be_in_several_files():
    samples, reference = sets_of()
    training, labels = make_images(50, 3), np.arange(60) % 2
    samples = replace(samples, arrays={**samples.arrays, "labels": labels[:30]})
    whole = replace(reference, arrays={**reference.arrays, "labels": labels, "training": training})
    parts = {"images": Shards(np.split(make_images(60, 9), [25])), "training": Shards(np.split(training, [10, 40]))}
    several = replace(whole, arrays=whole.arrays | parts)
    metrics = {name: {} for name, metric in METRICS.items() if "images" in metric.reference}
    one, two = (evaluate(metrics, samples, random_sets(30, 3, 0), side).numbers for side in (whole, several))
    assert one == two and {number.protocol["metric"] for number in one} == set(metrics)


CHANGES = {
    "reference.sha256": {"reference": {**FACTS, "sha256": "cd"}},
    "reference.split": {"reference": {**FACTS, "split": "test"}},
    "samples.count": {"samples": {"count": 50}},
    "features.resize": {"features": {"kind": "small", "resize": "tensorflow1"}},
    "options.nearest": {"options": {"nearest": 5}},
    "quantised": {"quantised": "float"},
    "seed": {"seed": 1},
}


@pytest.mark.parametrize("key", CHANGES)
def test_numbers_of_different_protocols_never_share_a_column(key):
    protocol = {
        "reference": FACTS, "samples": {"count": 40}, "features": dict(KIND.facts), "options": {"nearest": 3},
        "seed": 0, "quantised": "uint8",
    }  # fmt: skip
    a, b, c = Number("FID", 3.0, protocol), Number("FID", 2.0, protocol | CHANGES[key]), Number("FID", 4.0, protocol)
    assert differences([a.protocol, b.protocol]) == [key]
    found = columns({"a": [a], "b": [b], "c": [c]})
    assert [dict(column.numbers) for column in found] == [{"a": a, "c": c}, {"b": b}]
    assert all(column.distinction.startswith(key) and column.distinction in column.title for column in found)
    assert columns({"a": [a], "c": [c]})[0].title == "FID"
    assert comparable_values([a, c]) == (3.0, 4.0)
    with pytest.raises(DuetError, match=rf"FID: .* different protocols and cannot be compared \({key}: "):
        comparable_values([a, b])


def test_numbers_of_different_names_and_duplicates_are_refused():
    a, b = Number("FID", 3.0, {}), Number("KID", 3.0, {})
    assert len(columns({"a": [a, b]})) == 2
    with pytest.raises(DuetError, match="FID and KID were given"):
        comparable_values([a, b])
    with pytest.raises(DuetError, match="a: it has FID twice"):
        columns({"a": [a, a]})


def test_numbers_are_read_from_their_file_and_a_changed_protocol_is_refused(tmp_path: Path):
    numbers = tuple(numbers_of({"frechet": {}, "kernel": {"subsets": 2}, "colour": {}}).values())
    write_json(tmp_path / "evaluation.json", {"numbers": nested(numbers)})
    assert read_numbers(tmp_path) == numbers
    data = json.loads((tmp_path / "evaluation.json").read_text())
    data["numbers"]["frechet"]["distance"]["protocol"]["samples"]["count"] = 50_000
    write_json(tmp_path / "evaluation.json", data)
    with pytest.raises(DuetError, match="the protocol of small Fréchet distance does not match"):
        read_numbers(tmp_path)


def test_numbers_of_earlier_versions_get_their_present_names():
    number = Number("digits recognised as the class asked for", 0.5, {"metric": "agreement", "number": "rate"})
    assert Number.from_plain(number.plain).name == "digits recognised as the requested class"
    assert Number.from_plain(replace(number, name="memorised").plain).name == "memorised fraction"
    assert Number.from_plain(replace(number, name="FID").plain).name == "FID"


# Files


def test_samples_are_read_from_a_run_a_file_and_a_folder(tmp_path: Path):
    images, labels = make_images(6, channels=3), np.array([0, 1, 2, 0, 1, 2])
    write_samples(tmp_path / "run" / "samples" / "samples.npz", images, labels, conditional=True, seed=3)
    np.savez(tmp_path / "batch.npz", arr_0=images, arr_1=labels)
    for k, image in enumerate(images):
        (tmp_path / "folder").mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / "folder" / f"{k:03d}.png")
    found = [read_sample_set(tmp_path / name) for name in ("run", "run/samples/samples.npz", "batch.npz", "folder")]
    for source in found:
        np.testing.assert_array_equal(source.arrays["images"], images)
    assert len({source.facts["sha256"] for source in found}) == 1
    assert found[0].facts["made"]["seed"] == 3 and "labels" not in found[3].arrays
    np.testing.assert_array_equal(found[2].arrays["labels"], labels)
    both = join([found[0], found[3]])
    assert len(both) == 12 and "labels" not in both.arrays
    write_samples(tmp_path / "free.npz", images, 0 * labels, conditional=False)
    assert "labels" not in read_sample_set(tmp_path / "free.npz").arrays


def test_saved_features_give_the_same_numbers(tmp_path: Path):
    samples, reference = sets_of()
    for name, source in (("a", samples), ("b", reference)):
        write_features(tmp_path / f"{name}.npz", source)
    a, b = (read_sample_set(tmp_path / f"{name}.npz") for name in "ab")
    assert "images" not in a.arrays and a.kind == KIND and b.facts == FACTS
    metrics, sets = {"frechet": {}, "manifold": {}}, random_sets(30, 3, 0)
    assert evaluate(metrics, a, sets, b).numbers == evaluate(metrics, samples, sets, reference).numbers
    logits = np.random.default_rng(0).standard_normal((5, 4))
    np.savez(tmp_path / "foreign.npz", features=logits, logits=logits)
    foreign = read_sample_set(tmp_path / "foreign.npz")
    np.testing.assert_allclose(foreign.arrays["probabilities"], softmax(logits, axis=1))
    assert foreign.kind.name == "given" and foreign.kind.facts["width"] == {"features": 4, "probabilities": 4}


def test_images_of_earlier_files_are_called_pictures_and_hashes_have_not_changed(tmp_path: Path):
    images = make_images(3)
    for name in ("pictures", "images"):
        np.savez(tmp_path / f"{name}.npz", **{name: images})
    old, new = (read_sample_set(tmp_path / f"{name}.npz") for name in ("pictures", "images"))
    np.testing.assert_array_equal(old.arrays["images"], new.arrays["images"])
    digest = hashlib.sha256(f"pictures {images.dtype.str} {images.shape}".encode() + images.tobytes()).hexdigest()
    assert old.facts["sha256"] == new.facts["sha256"] == digest


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros(3)}, "it holds x; it must hold one of images, features"),
        ({"images": np.zeros((3, 4, 4, 1))}, "images are float64 with shape"),
        ({"features": np.zeros((3, 4), np.int64)}, "features are int64"),
        ({"images": make_images(3), "labels": np.zeros(2, np.int64)}, "3 images, 2 labels"),
        ({"features": np.array([{}], object)}, "it holds objects, which are pickles"),
    ],
)
def test_invalid_sample_files_are_refused(tmp_path: Path, arrays, message):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(DuetError, match=message):
        read_sample_set(tmp_path / "x.npz")


def test_invalid_sample_folders_are_refused(tmp_path: Path):
    with pytest.raises(DuetError, match="not a folder with images"):
        read_sample_set(tmp_path)
    Image.fromarray(make_images(1)[0, ..., 0]).save(tmp_path / "a.png")
    Image.new("RGB", (5, 4)).save(tmp_path / "b.png")
    with pytest.raises(DuetError, match=r"b\.png is 5 x 4 pixels and a\.png 4 x 4.*data=image_folder"):
        read_sample_set(tmp_path)
    (tmp_path / "b.png").write_text("no image")
    with pytest.raises(DuetError, match=r"1 of 2 images cannot be read, .*b\.png"):
        read_sample_set(tmp_path)
    assert len(read_sample_set(tmp_path, max_unreadable=0.5)) == 1
