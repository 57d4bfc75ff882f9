"""A classifier of noisy images: the encoder of the UNet, the mean of all pixels, and a dense layer.

embed:  as in the UNet, without a class
down:   as in the UNet
mid:    as in the UNet
out:    GroupNorm -> SiLU -> Mean -> Linear                          K logits

It reads images at every noise level, so the gradient of its log p(class | x_t) can guide sampling.

References:
    Diffusion Models Beat GANs on Image Synthesis (Dhariwal & Nichol, 2021), section 4, https://arxiv.org/abs/2105.05233
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from diffusion_core.common.errors import DuetError
from diffusion_core.networks.blocks import Mean
from diffusion_core.networks.builder import lower
from diffusion_core.networks.program import Program
from diffusion_core.networks.unet import UNetBuilder
from diffusion_core.networks.unet_spec import UNetSpec

__all__ = ["ClassifierSpec"]


@dataclass(frozen=True, repr=False)
class ClassifierSpec(UNetSpec):
    """A classifier with the options of `UNetSpec`; options of the decoder have no effect.

    `num_classes` and `out_channels` are both the number of classes K, at least 2. The classes are the output of the
    network, not an input.

    Example:
        >>> from diffusion_core.networks import lower
        >>> from diffusion_core.networks.weights import parameter_count
        >>> spec = ClassifierSpec(
        ...     8, 1, 10, channels=8, channel_multipliers=(1,), attention_resolutions=(), norm_groups=4, num_classes=10
        ... )
        >>> parameter_count(lower(spec))
        7690
    """

    classifies: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_classes < 2 or self.out_channels != self.num_classes:
            raise DuetError(
                f"model.num_classes, model.out_channels: {self.num_classes} and {self.out_channels} were given; both "
                "must be the number of classes, at least 2"
            )
        if self.self_conditioning:
            raise DuetError("model.self_conditioning: true was given; a classifier reads no estimate, so use false")


@lower.register
def _(spec: ClassifierSpec) -> Program:
    return _Lowering(spec).build()


class _Lowering(UNetBuilder):
    def build(self) -> Program:
        self.embedded = self.embedding()
        x, _ = self.encoder()
        x = self.act("out.act", self.norm("out.norm", self.middle(x)))
        x = self.add("out.mean", Mean(), x)
        self.linear("out.dense", x, self.spec.num_classes, scale=self.output_scale)
        return self.program(classes=self.spec.num_classes)

    def add_class_embedding(self, h: str) -> str:
        return h
