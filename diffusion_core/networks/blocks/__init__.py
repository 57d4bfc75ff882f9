"""The block kinds: all operations that a network is made of.

A kind is a frozen dataclass of explicit numbers: no "same" padding, no default epsilon, no default initialiser. It
states its parameters with their initial distributions, the shape of its value and its multiply-adds; it
computes nothing. `backend/reference/` has one function per kind, `convert/onnx*.py` one emitter, and each backend one
class of the same name; see `networks/registry.py`.

Values are images ``b h w c``, tokens ``b n c`` or vectors ``b c``. Parameters have the axes of PyTorch (``o i kh kw``).
What is said of pixels holds of tokens too. Blocks that make or need tokens are in `tokens.py`, those that preserve the
magnitude of their input in `magnitude.py`.

    Sinusoid       [cos, sin] features of one number per sample, at fixed frequencies
    Fourier        the same at random frequencies, which are stored with the weights
    Number         one number per sample as a vector of one channel
    Embedding      one row of a table per label
    Linear         y = x W^T + b
    Conv           2-D convolution; the padding of each side is explicit
    ConvTranspose  its transpose, cropped on every side
    GroupNorm      (x - mean) / sqrt(variance + eps) per group, then scale and shift; biased variance
    LayerNorm      the same over the channels of each pixel, or over a whole image
    RMSNorm        x sqrt(c) / |x| over the c channels of each pixel, then a scale
    BatchNorm      the same as GroupNorm per channel over the batch; running statistics in evaluation
    SiLU, ReLU     x sigmoid(x), max(x, 0)
    GELU, Sigmoid  x Phi(x) with the normal distribution function Phi, or its approximation by tanh; 1 / (1 + exp(-x))
    Mish           x tanh(log(1 + exp(x)))
    Attention      softmax(q k^T / sqrt(d)) v over all pixels, per head
    MemoryAttention  the same with learned keys and values in addition to those of the pixels
    LinearAttention  softmax_d(q) / sqrt(d) (softmax_n(k)^T v), whose cost is linear in the pixels, with the same memory
    Dropout        zeros from the shared random stream in training, the identity in evaluation
    Add, Multiply  (a + b) scale, a b; a vector acts on every pixel
    Modulate       x (1 + scale) + shift, where one vector holds both
    Concat         channels of a, then of b; a vector is repeated at every pixel
    Upsample       nearest neighbour, twice the height and width
    AvgPool        mean of 2 x 2 pixels
    MaxPool        maximum of 2 x 2 pixels
    Mean           mean of all pixels, a vector
    Resample       twice or half the height and width, by one small matrix along each side
    Flatten        an image as a vector in the order h w c
    Unflatten      its inverse

BatchNorm and Dropout compute something else in training than in evaluation (`has_training_mode`).
"""

from __future__ import annotations

from diffusion_core.networks.blocks import magnitude as _magnitude  # noqa: F401  registers its kinds
from diffusion_core.networks.blocks import tokens as _tokens  # noqa: F401  registers its kinds
from diffusion_core.networks.blocks.activations import GELU, Dropout, Mish, ReLU, Sigmoid, SiLU
from diffusion_core.networks.blocks.attention import ATTENTION_ORDERS, Attention, LinearAttention, MemoryAttention
from diffusion_core.networks.blocks.embeddings import Embedding, Fourier, Number, Sinusoid
from diffusion_core.networks.blocks.joins import Add, Concat, Modulate, Multiply
from diffusion_core.networks.blocks.linear import Conv, ConvTranspose, Linear
from diffusion_core.networks.blocks.norms import BatchNorm, GroupNorm, LayerNorm, RMSNorm
from diffusion_core.networks.blocks.shapes import AvgPool, Flatten, MaxPool, Mean, Resample, Unflatten, Upsample

__all__ = [
    "ATTENTION_ORDERS",
    "Add",
    "Attention",
    "AvgPool",
    "BatchNorm",
    "Concat",
    "Conv",
    "ConvTranspose",
    "Dropout",
    "Embedding",
    "Flatten",
    "Fourier",
    "GELU",
    "GroupNorm",
    "LayerNorm",
    "Linear",
    "LinearAttention",
    "MaxPool",
    "Mean",
    "MemoryAttention",
    "Mish",
    "Modulate",
    "Multiply",
    "Number",
    "RMSNorm",
    "ReLU",
    "Resample",
    "SiLU",
    "Sigmoid",
    "Sinusoid",
    "Unflatten",
    "Upsample",
]
