"""A classifier of noisy images: its program, its training and the sampling that it guides."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import log_softmax

from diffusion_core.backend import reference
from diffusion_core.common.errors import DuetError
from diffusion_core.common.random import Stream
from diffusion_core.diffusion.process import add_noise
from diffusion_core.metrics.accuracy import correct_predictions
from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.model.generate import check_labels, describe_labels
from diffusion_core.networks import ClassifierSpec, UNetSpec, lower
from diffusion_core.parity import cases
from diffusion_core.training.objective import Objective

SPEC = cases.CLASSIFIER
MODEL = DiffusionModel(SPEC, {"name": "linear"}, "eps")
PROGRAM = MODEL.program
WEIGHTS = cases.scattered_weights(PROGRAM)
SAMPLED = DiffusionModel(UNetSpec(8, 1, 1, 8, (1,), 1, (), norm_groups=4, num_classes=10), {"name": "linear"}, "v")
X = Stream(4, "x").normal(np.arange(3), SPEC.image_shape)
T, LABEL = np.array([3.0, 500.0, 900.0]), np.array([2, 0, 9])


def logits(x: np.ndarray = X, t: np.ndarray = T, label: np.ndarray = LABEL) -> np.ndarray:
    return reference.forward(PROGRAM, WEIGHTS, x, t, label)


def test_a_classifier_is_the_unet_encoder_without_class_input():
    unet = lower(UNetSpec(8, 1, 1, 8, (1, 2), 1, (4,), heads=2, norm_groups=4, zero_init=False))
    shared = [node for node in unet.nodes if not node.name.startswith(("up.", "out."))]
    assert list(PROGRAM.nodes[: len(shared)]) == shared
    assert (PROGRAM.classes, PROGRAM.null_label, logits().shape) == (10, None, (3, 10))
    np.testing.assert_array_equal(logits(label=LABEL[::-1]), logits())
    assert np.abs(logits(t=T + 50) - logits()).max() > 1e-4
    again = DiffusionModel.from_dict(MODEL.to_dict())
    assert again.spec == SPEC and again.classifies and not SAMPLED.classifies


def test_the_loss_is_the_cross_entropy_of_each_image():
    objective = Objective(MODEL.process, 1, "cross_entropy", classes=10)
    batch = objective.batch(X, LABEL, np.arange(3), np.float64)
    batch = replace(batch, weight=np.array([1.0, 2.0, 0.5]))
    noisy = add_noise(batch.images, batch.noise, batch.alpha, batch.sigma)
    log_p = log_softmax(logits(noisy, batch.c_noise), axis=1)
    wanted = -np.mean(batch.weight * log_p[np.arange(3), LABEL])
    assert reference.loss(PROGRAM, WEIGHTS, batch, "cross_entropy") == pytest.approx(wanted, rel=1e-13)


def test_the_reference_differences_equal_the_gradient_of_log_p():
    slope = reference.grad_log_prob(PROGRAM, WEIGHTS, X, T, LABEL)
    direction = Stream(5, "direction").normal(np.arange(3), SPEC.image_shape)

    def log_p(share: float) -> np.ndarray:
        return log_softmax(logits(X + share * direction), axis=1)[np.arange(3), LABEL]

    difference = (log_p(1e-4) - log_p(-1e-4)) / 2e-4
    np.testing.assert_allclose((slope * direction).sum(axis=(1, 2, 3)), difference, rtol=1e-6, atol=1e-9)
    # The gradients of log p, weighted by p, sum to zero over the classes.
    p = np.exp(log_softmax(logits()[:1], axis=1))[0]
    every = np.stack([reference.grad_log_prob(PROGRAM, WEIGHTS, X[:1], T[:1], np.array([k]))[0] for k in range(10)])
    np.testing.assert_allclose(np.tensordot(p, every, 1), 0.0, atol=1e-10)


def test_accuracy_is_counted_at_each_level():
    labels = np.arange(6) % 3
    pictures = np.array([0, 128, 255], np.uint8)[labels].reshape(6, 1, 1, 1) * np.ones((6, 2, 2, 1), np.uint8)
    process = MODEL.process

    def nearest(x: np.ndarray, c_noise: np.ndarray, label: np.ndarray) -> np.ndarray:
        alpha, _ = process.schedule(c_noise[0])
        return -np.abs(x.mean(axis=(1, 2)) / alpha - np.array([-1.0, 0.0, 1.0]))

    done = []
    found = correct_predictions(nearest, process, pictures, labels, [0, 999], seed=1, batch=4, progress=done.append)
    assert done == [4, 8, 10, 12]
    assert found[0].all() and found[1].mean() < 1.0
    np.testing.assert_array_equal(found, correct_predictions(nearest, process, pictures, labels, [0, 999], seed=1))


def test_classifier_guidance_needs_class_labels():
    plan = SAMPLED.plan("ddim", classifier=1.0)
    np.testing.assert_array_equal(check_labels([0, 9], SAMPLED.program, plan, classifier=PROGRAM), [0, 9])
    with pytest.raises(DuetError, match=r"label 10: the classifier has classes 0\.\.9"):
        check_labels([0, 10], SAMPLED.program, plan, classifier=PROGRAM)
    blind = replace(SAMPLED, spec=replace(SAMPLED.spec, num_classes=0))
    np.testing.assert_array_equal(check_labels([3, 4], blind.program, plan, classifier=PROGRAM), [3, 4])
    shifted = replace(SAMPLED.program, null_label=0)
    assert describe_labels(shifted, PROGRAM) == "the classifier has classes 1..10"


def test_a_classifier_must_share_levels_and_inputs_with_the_sampled_model():
    plan = SAMPLED.plan("ddim", classifier=1.0)
    SAMPLED.check_classifier(MODEL, plan)  # eps and v have the same inputs
    for changes, words in (
        ({"schedule": {"name": "cosine"}}, "classifier: .* another process .eps on cosine"),
        ({"time_scale": 0.5}, "classifier: .* another process"),
        ({"spec": replace(SPEC, num_classes=4, out_channels=4)}, "classifier: it has 4 classes, .* has 10"),
        (
            {"spec": replace(SPEC, image_size=16, attention_resolutions=())},
            r"classifier: its images have shape \(16, 16, 1\)",
        ),
    ):
        with pytest.raises(DuetError, match=words):
            SAMPLED.check_classifier(replace(MODEL, **changes), plan)
    with pytest.raises(DuetError, match="classifier: this checkpoint is not a classifier"):
        SAMPLED.check_classifier(SAMPLED, plan)


def test_a_classifier_cannot_be_sampled_and_needs_cross_entropy():
    with pytest.raises(DuetError, match=r"checkpoint: this is a classifier, .* pass this one as classifier=RUN"):
        MODEL.plan("ddim")
    with pytest.raises(DuetError, match="checkpoint: this is a classifier"):
        SAMPLED.check_guide(MODEL, SAMPLED.plan("ddim", guidance_scale=2.0))
    MODEL.check_distance("cross_entropy")
    with pytest.raises(DuetError, match=r"process.distance: mse was given for a classifier; use cross_entropy"):
        MODEL.check_distance("mse")
    with pytest.raises(DuetError, match=r"process.distance: cross_entropy .* not a classifier; use mse, l1"):
        SAMPLED.check_distance("cross_entropy")


@pytest.mark.parametrize("changes, words", [
    ({"out_channels": 3}, "both must be the number of classes"),
    ({"out_channels": 1, "num_classes": 1}, "at least 2"),
    ({"self_conditioning": True}, r"model.self_conditioning: .* no estimate"),
])  # fmt: skip
def test_invalid_options_of_a_classifier_are_refused(changes, words):
    with pytest.raises(DuetError, match=words):
        ClassifierSpec(**({"image_size": 8, "in_channels": 1, "out_channels": 10, "channels": 8,
                           "channel_multipliers": (1,), "attention_resolutions": (), "norm_groups": 4,
                           "num_classes": 10} | changes))  # fmt: skip
