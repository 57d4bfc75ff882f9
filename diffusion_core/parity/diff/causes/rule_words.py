"""The names and words of what differs in a training step."""

from __future__ import annotations

from collections.abc import Sequence

from numpy.typing import NDArray

from diffusion_core.parity.diff.causes.update_rules import FIELDS, Rule, clip_words

__all__ = ["ADVICE", "KINDS", "TITLES", "rate_words", "rule_words"]

# The kind of a difference in one field of a rule.
KINDS = {
    "momentum": "momentum",
    "dampening": "momentum_dampening",
    "nesterov": "nesterov",
    "rate_inside": "momentum_form",
    "beta1": "moment_decay",
    "beta2": "moment_decay",
    "epsilon": "optimiser_epsilon",
    "epsilon_at": "optimiser_epsilon_form",
    "correction": "bias_correction",
    "count_from": "step_count",
    "amsgrad": "amsgrad",
    "centred": "rmsprop_centred",
    "accumulator": "adagrad_accumulator",
    "decay": "weight_decay",
    "undecayed": "weight_decay_exclusion",
    "rounded": "float32_hyper_parameters",
}

TITLES = {
    "optimiser": "the optimiser",
    "optimiser_unknown": "what the optimiser does",
    "momentum": "the momentum of the optimiser",
    "momentum_dampening": "the dampening of the momentum",
    "nesterov": "Nesterov's momentum",
    "momentum_form": "the learning rate inside or outside the velocity",
    "moment_decay": "the decay of the optimiser's moments",
    "optimiser_epsilon": "the epsilon of the optimiser",
    "optimiser_epsilon_form": "where the optimiser adds its epsilon",
    "bias_correction": "the bias correction of the moments",
    "step_count": "the count of the updates",
    "amsgrad": "AMSGrad",
    "rmsprop_centred": "the centred form of RMSprop",
    "adagrad_accumulator": "the initial accumulator of Adagrad",
    "weight_decay": "the weight decay",
    "weight_decay_coupling": "weight decay in the gradient or in the weights",
    "weight_decay_rate": "whether weight decay is multiplied by the learning rate",
    "weight_decay_order": "weight decay before or after the step",
    "weight_decay_exclusion": "which parameters decay",
    "weight_decay_in_loss": "a penalty on the weights in the loss",
    "float32_hyper_parameters": "hyper-parameters of the optimiser in float32",
    "float32_learning_rate": "the learning rate in float32",
    "learning_rate": "the learning rate",
    "learning_rate_off_by_one": "the step at which the learning rate schedule starts",
    "learning_rate_schedule": "the learning rate schedule",
    "gradient_clipping": "how gradients are clipped",
    "clip_norm_epsilon": "the small number in torch's clipping of norms",
    "gradient_accumulation": "the accumulation of gradients",
    "loss_reduction": "the reduction of the loss",
    "gradient_scale": "the scale of the gradients",
    "frozen_parameter": "a parameter that is not trained",
    "step_gradient": "the gradients of a training step",
    "step_loss": "the loss of a training step",
    "doubled_bias": "a bias held as a sum of two",
}

ADVICE = {
    "momentum_form": "torch: p -= lr v; Keras: v = mu v - lr g. They differ when the rate changes",
    "optimiser_epsilon": "eps= in PyTorch (1e-8), epsilon= in Keras (1e-7)",
    "optimiser_epsilon_form": "Keras adds epsilon to the uncorrected root, so no constant makes it torch's",
    "moment_decay": "betas= in PyTorch, beta_1= and beta_2= in Keras; alpha= and rho= of RMSprop (0.99 and 0.9)",
    "weight_decay": "weight_decay= in both; AdamW has 0.01 in PyTorch and 0.004 in Keras",
    "weight_decay_coupling": "torch's SGD and Adam add it to the gradient; AdamW and all of Keras's shrink the weights",
    "weight_decay_exclusion": "parameter groups in PyTorch, exclude_from_weight_decay() in Keras",
    "gradient_clipping": "clip_grad_norm_ is global_clipnorm; clipnorm is per variable; clip_grad_value_ is clipvalue",
    "gradient_accumulation": "gradient_accumulation_steps takes the mean; in PyTorch divide the loss by that number",
    "loss_reduction": "reduction= in both; a sum is the mean times the number of elements",
    "adagrad_accumulator": "initial_accumulator_value: 0 in PyTorch, 0.1 in Keras",
    "learning_rate_off_by_one": "torch's schedulers step after the update; Keras's schedules count from iteration 0",
    "bias_correction": "divide m by 1 - beta1^k and v by 1 - beta2^k, with k = 1 at the first update",
    "doubled_bias": "freeze one of torch's two LSTM biases at zero, or halve its learning rate",
    "frozen_parameter": "requires_grad in PyTorch, trainable in Keras; and what the optimiser is given",
}

_NAMES = {
    "sgd": "SGD",
    "adam": "Adam",
    "rmsprop": "RMSprop",
    "adagrad": "Adagrad",
    "adamax": "Adamax",
    "nadam": "Nadam",
    "lion": "Lion",
}
_WORDS = {
    "nesterov": {True: "momentum is Nesterov's", False: "momentum is plain"},
    "rate_inside": {
        True: "the learning rate is inside the velocity",
        False: "the learning rate multiplies the velocity",
    },
    "epsilon_at": {
        "outside": "epsilon is added to the corrected root",
        "hat": "epsilon is added to the uncorrected root",
        "inside": "epsilon is added inside the root",
    },
    "correction": {
        "both": "both moments are corrected",
        "none": "the moments are not corrected",
        "first": "only the first moment is corrected",
        "second": "only the second moment is corrected",
    },
    "amsgrad": {True: "AMSGrad is on", False: "AMSGrad is off"},
    "centred": {True: "the second moment is centred", False: "the second moment is not centred"},
    "decay_at": {
        "gradient": "weight decay is added to the gradient",
        "before": "weights shrink by the rate times the decay before the step",
        "after": "weights shrink by the rate times the decay after the step",
        "before without rate": "weights shrink by the decay alone, without the rate",
    },
    "rounded": {True: "betas pass through float32", False: "betas are exact"},
}
_LABELS = {
    "accumulator": "the accumulator starts at",
    "decay": "weight decay is",
    "count_from": "the first update counts as",
    "beta2": "beta2 is",
    "beta1": "beta1 is",
}


def rule_words(rule: Rule, names: Sequence[str] = ()) -> str:
    """Say what a rule does, or what some of its fields are."""
    if names:
        kept = [name for name in names if name != "undecayed" and (rule.decay or name != "decay_at")]
        return ", ".join(_field(rule, name) for name in kept)
    numbers = ("momentum", "beta1", "beta2", "epsilon")
    told = [f"{name} {getattr(rule, name):g}" for name in FIELDS[rule.method] if name in numbers]
    told += [f"weight decay {rule.decay:g}"] if rule.decay else []
    told += [clip_words(rule.clip, rule.limit)] if rule.clip else []
    return f"{_NAMES[rule.method]} with {', '.join(told)}" if told else _NAMES[rule.method]


def _field(rule: Rule, name: str) -> str:
    value = getattr(rule, name)
    return _WORDS[name][value] if name in _WORDS else f"{_LABELS.get(name, name + ' is')} {value:g}"


def rate_words(rates: NDArray, step: int) -> str:
    """Say the learning rate at the first step that differs."""
    return f"the learning rate of step {step + 1} is {float(rates[step]):.8g}"
