"""Small networks that together contain every option of every architecture."""

from __future__ import annotations

from dataclasses import replace

from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.networks import (
    ClassifierSpec,
    DiTSpec,
    DoubleConvSpec,
    EDM2Spec,
    JiTSpec,
    LinearAttentionSpec,
    NetworkSpec,
    PlainSpec,
    SimpleSpec,
    SixteenStepSpec,
    UNetSpec,
    UViTSpec,
)

__all__ = [
    "CLASSIFIER",
    "FEW_NETWORKS",
    "MEASURED",
    "NETWORKS",
    "PARITY",
]


_SMALL = UNetSpec(
    image_size=8, in_channels=1, out_channels=1, channels=16, channel_multipliers=(1, 2), blocks_per_resolution=1,
    attention_resolutions=(4,), heads=2, qkv_bias=False, norm_groups=4, norm_eps=1e-5, num_classes=10,
)  # fmt: skip


def _with(**changes: object) -> UNetSpec:
    return replace(_SMALL, zero_init=False, **changes)


_SONG = _with(
    down="block", up="block", resample_projection=True, up_attention="last", norm_group_channels=4, qkv_bias=True,
    qkv_order="interleaved", skip_scale=2.0**-0.5, class_embedding="before", augment_dim=9, dropout=0.13,
)  # fmt: skip
_ADM = _with(
    time="scale_shift", down="block", up="block", head_channels=8, embedding_divisor="half", embedding_sin_first=False,
    null_class="zero", dropout=0.1,
)  # fmt: skip

NETWORKS: dict[str, NetworkSpec] = {
    "time added, strided": _with(),
    "scale and shift, residual resampling": _with(time="scale_shift", down="block", up="block", skip_scale=2.0**-0.5),
    "pooled, head channels, cos first, no classes": _with(
        down="pool", up="nearest", head_channels=8, embedding_divisor="half", embedding_sin_first=False, num_classes=0,
        in_channels=3, out_channels=3,
    ),
    "three levels, padding (0, 1), eps 1e-6": _with(
        image_size=16, channel_multipliers=(1, 2, 2), down_padding=(0, 1), norm_eps=1e-6, attention_resolutions=(8, 4)
    ),
    "fractions of the width, GELU, a way to resample for each resolution": _with(
        image_size=16, channel_multipliers=(0.5, 1.25, 1.5), first_conv="first", down=("conv", "block"),
        up=("block", "nearest"), up_attention_resolutions=(16, 8), activation="gelu", embedding_width=24,
        middle_norm_groups=8, middle_skip_scale=0.5, time="scale_shift",
    ),
    "ADM, learned variance": replace(_ADM, qkv_order="heads", in_channels=3, out_channels=6),
    "ADM of EDM": replace(_ADM, qkv_order="interleaved", in_channels=3, out_channels=3),
    "DDPM++": _SONG,
    "NCSN++": replace(
        _SONG, embedding="fourier", embedding_multiplier=2, encoder="residual", resample_filter=(1.0, 3.0, 3.0, 1.0),
        num_classes=0,
    ),
    "landscape": DoubleConvSpec(16, 3, 3, num_classes=5, channels=8, channel_multipliers=(1, 2, 4), embedding=16),
    "double_conv_attention": DoubleConvSpec(16, 1, 1, channels=8, channel_multipliers=(1, 2, 4), embedding=16),
    "simple": SimpleSpec(8, channels=(4, 8, 16), embedding=8),
    "sixteen_step": SixteenStepSpec(8, channels=8, levels=2, embedding=8, bottleneck=16, bottom_channels=4),
    "linear attention with a memory": LinearAttentionSpec(
        8, channels=8, channel_multipliers=(1, 2), heads=2, head_channels=4, memory=3, dropout=0.1
    ),
    "denoising_autoencoder": PlainSpec(
        16, channels=(4, 8, 16), bottleneck=16, time="none", up="nearest", output="sigmoid"
    ),
    "plain": PlainSpec(16, channels=(4, 8, 16), bottleneck=32, time_scale=1e-3),
    "DiT, learned variance": DiTSpec(
        8, 1, 2, num_classes=10, channels=16, depth=2, heads=2, embedding_features=16
    ),
    "SiT of diffusers' embedding, no null row": DiTSpec(
        8, 2, 2, num_classes=10, patch_size=4, channels=16, depth=1, heads=2, mlp_ratio=2.0, embedding_features=16,
        null_class="none", discarded_channels=2, embedding_divisor="half_minus_one", mlp_norm_eps=1e-5,
    ),
    "EDM2": EDM2Spec(
        8, 3, 3, num_classes=10, channels=8, channel_multipliers=(1, 2), blocks_per_resolution=1,
        attention_resolutions=(8,), head_channels=8, dropout=0.1, resample_filter=(1.0, 3.0, 3.0, 1.0),
        # With these widths no gradient of a gain, which is one number, is a sum that cancels to the last digits.
        noise_multiplier=2, embedding_multiplier=3, label_balance=0.4, clip=2.0, logvar_channels=6,
    ),
    "U-ViT": UViTSpec(8, 1, 1, num_classes=3, channels=16, depth=2, heads=2, patch_size=2, time_mlp=True),
    "JiT": JiTSpec(
        8, 1, 1, num_classes=3, patch_size=2, bottleneck=6, channels=16, depth=4, heads=2, context=2, context_start=1,
        dropout=0.2, attention_dropout=0.1,
    ),
}  # fmt: skip

# A classifier with the classes of `PARITY`.
CLASSIFIER = ClassifierSpec(8, 1, 10, 8, (1, 2), 1, (4,), heads=2, norm_groups=4, num_classes=10, zero_init=False)

# For a quick climb: the network whose parts the other networks share.
FEW_NETWORKS = ("time added, strided",)

# The network that is trained and sampled: rungs 6, 7 and 8.
PARITY = DiffusionModel(_SMALL, {"name": "linear", "T": 1000}, "eps")


# Posterior sampling: a small network, since the reference takes derivatives by differences, and a plan for each method.
MEASURED = UNetSpec(4, 2, 2, 4, (1,), 1, (), norm_groups=2, num_classes=3, zero_init=False)
