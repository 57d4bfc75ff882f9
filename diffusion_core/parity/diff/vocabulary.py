"""The kinds of operations that a recording is made of.

A recorder translates each operation of its framework into these kinds; everything after that knows no framework. One
native operation may become several. What does not fit becomes "opaque": it is compared by its values only.

Conventions:

* Axes are counted from 0 and never negative. Shapes and attributes are concrete numbers of the recorded pass.
* `scalar` stands for the second input of a two-input operation that is a Python number; `reverse` says that it comes
  first. ``1 - x`` is ``subtract(x, scalar=1, reverse=True)``.
* Each side keeps its own layout: `layout` is "channels_first" or "channels_last".
* Kernels: "OIHW" (torch), "HWIO" (TensorFlow), "HWIM" (TensorFlow, depthwise: input channels and multiplier); for
  transposed convolutions "IOHW" and "HWOI". The letters of the space are those of two dimensions, also for 1 and 3.
* Padding is a list of (before, after) per spatial axis, in numbers; names such as "SAME" are resolved by the recorder.
  The pad value of a max pool is -inf.
* Integer computations on shapes are not recorded; their results are numbers in attributes.
"""

from __future__ import annotations

__all__ = ["BINARY", "COMPOSITE", "KINDS", "LAYOUT_KINDS", "REDUCTIONS", "UNARY"]

# Elementwise functions of one input.
UNARY = {
    name: ()
    for name in (
        "negative", "exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sqrt", "rsqrt", "square", "reciprocal",
        "abs", "sign", "sin", "cos", "tan", "tanh", "sinh", "cosh", "arcsin", "arccos", "arctan", "arcsinh",
        "arccosh", "arctanh", "erf", "erfc", "erfinv", "lgamma", "sigmoid", "log_sigmoid", "silu", "relu", "relu6",
        "selu", "softsign", "mish", "tanhshrink", "hardsigmoid", "hardswish", "floor", "ceil", "round", "trunc",
        "logical_not", "isnan", "isinf", "isfinite",
    )
} | {
    "leaky_relu": ("slope",),
    "elu": ("alpha",),
    "celu": ("alpha",),
    "softshrink": ("cut",),
    "hardshrink": ("cut",),
    "threshold": ("cut", "value"),       # x where x > cut, else value
    "softplus": ("beta", "threshold"),   # threshold: beta x above it gives x itself; inf if there is none
    "gelu": ("approximate",),            # "none" (erf) or "tanh"
    "clip": ("low", "high"),             # None: no bound
    "cast": ("dtype",),                  # NumPy's name
    "identity": (),
    "stop_gradient": (),
}  # fmt: skip

# Elementwise functions of two inputs, with broadcasting; or of one input and `scalar` with `reverse`.
BINARY = {
    name: ("scalar", "reverse")
    for name in (
        "add", "subtract", "multiply", "divide", "power", "maximum", "minimum", "floor_divide", "modulo", "arctan2",
        "equal", "not_equal", "less", "less_equal", "greater", "greater_equal", "logical_and", "logical_or",
        "logical_xor",
    )
}  # fmt: skip

REDUCTIONS = {
    name: ("axes", "keepdims")
    for name in ("sum", "mean", "max", "min", "prod", "any", "all", "logsumexp", "argmax", "argmin")
} | {
    "variance": ("axes", "keepdims", "ddof"),   # ddof 1 is unbiased
    "std": ("axes", "keepdims", "ddof"),
    "norm": ("axes", "keepdims", "order"),      # order 2: root of the sum of squares
}  # fmt: skip

# Operations that only move numbers.
LAYOUT_KINDS = {
    "reshape": ("shape",),
    "transpose": ("axes",),
    "expand": ("shape",),                # broadcasts to the shape
    "concat": ("axis",),                 # any number of inputs
    "stack": ("axis",),
    "split": ("axis", "sizes"),          # several outputs
    "unstack": ("axis",),                # several outputs, without that axis
    "slice": ("start", "stop", "step"),  # per axis; stop may be None; a step may be negative
    "pad": ("padding", "mode", "value"), # (before, after) per axis; "constant", "reflect", "replicate", "circular"
    "flip": ("axes",),
    "roll": ("shifts", "axes"),
    "tile": ("repeats",),
    "repeat": ("repeats", "axis"),       # each entry so many times in a row
    "update_slice": ("start", "stop", "step"),  # (x, value): x with that slice written over
    "triangle": ("low", "high"),         # entries between two diagonals of the last two axes, and zeros
    "take_along": ("axis",),             # (x, indices) of the same rank: NumPy's take_along_axis
    "gather": ("axis",),                 # (x, indices): indices along one axis; an embedding has axis 0
    "depth_to_space": ("block", "order", "layout"),  # order "CRD" (torch's pixel_shuffle) or "DCR" (TensorFlow)
    "space_to_depth": ("block", "order", "layout"),
    "unfold": ("window", "strides", "padding", "dilation"),  # torch's unfold of b c h w to b (c kh kw) l
    "extract_patches": ("window", "strides", "padding", "dilation"),  # TensorFlow's, b h w c to b h w (kh kw c)
}  # fmt: skip

_WINDOW = ("window", "strides", "padding", "dilation", "layout")

# Operations that `operations` writes as several simple ones when a recording is compared.
COMPOSITE = {
    "batch_norm": ("epsilon", "axis", "training", "momentum"),  # (x, gamma?, beta?, mean?, variance?); see `has`
    "group_norm": ("groups", "epsilon", "axis"),   # (x, gamma?, beta?)
    "layer_norm": ("axes", "epsilon"),             # (x, gamma?, beta?)
    "rms_norm": ("axes", "epsilon"),               # (x, gamma?)
    "attention": ("scale", "causal"),   # (q, k, v, mask?), b h n d each; a mask is added, or boolean (True: seen)
}  # fmt: skip

KINDS = {
    **UNARY,
    **BINARY,
    **REDUCTIONS,
    **LAYOUT_KINDS,
    **COMPOSITE,
    "softmax": ("axis", "safe"),         # safe: a row of -inf gives zeros, not NaN
    "causal_mask": ("rows", "columns"),  # no inputs; True at or below the diagonal
    "log_softmax": ("axis",),
    "cumsum": ("axis", "exclusive", "reverse"),   # exclusive: without the own place; reverse: from the end
    "cumprod": ("axis", "exclusive", "reverse"),
    "where": ("scalars",),               # (condition, x?, y?); scalars: [x, y], with None for what is an input
    "one_hot": ("size", "axis", "dtype"),
    "sort": ("axis", "descending"),
    "matmul": ("transpose_a", "transpose_b"),
    "einsum": ("equation",),
    "bias_add": ("axis",),               # (x, bias): bias of one axis
    "conv": ("strides", "padding", "dilation", "groups", "layout", "kernel"),
    "conv_transpose": ("strides", "padding", "dilation", "groups", "layout", "kernel", "output_size"),
    "max_pool": (*_WINDOW, "ceil_mode"),
    "avg_pool": (*_WINDOW, "ceil_mode", "count_include_pad", "divisor"),
    "adaptive_avg_pool": ("output_size", "layout"),
    "adaptive_max_pool": ("output_size", "layout"),
    "resize": ("size", "mode", "align_corners", "half_pixel", "antialias", "scale", "layout"),
    "random": ("distribution", "rate"),  # no inputs, or the shape's; "uniform", "normal", "bernoulli"
    "constant": (),                      # no inputs: made by the code, such as arange or zeros
    "opaque": (),
}  # fmt: skip
"""The attributes of each kind. Composite kinds with optional inputs have `has`: the names of those that are there,
in order, such as ["x", "gamma", "beta"]. `resize` has modes "nearest", "nearest-exact", "bilinear", "bicubic", "area";
`half_pixel` says whether centres are at i + 0.5; `scale` is the factor given by the user, or None. `conv_transpose` has
`padding` as torch counts it: what is cut from the full output before and after, and `output_size` per spatial axis."""
