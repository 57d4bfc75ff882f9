import numpy as np

SOURCE_WORDS, TARGET_WORDS, EMBED, UNITS = 31, 27, 12, 16
SOURCE_LENGTH, TARGET_LENGTH, START = 7, 6, 1


def make():
    rng = np.random.default_rng(77)

    def some(*shape, size=None):
        return rng.standard_normal(shape) * (size or 1.2 / np.sqrt(shape[-1]))

    w = {"source": some(SOURCE_WORDS, EMBED, size=0.7), "target": some(TARGET_WORDS, EMBED, size=0.7)}
    for side, width in (("encoder", EMBED), ("decoder", EMBED)):
        # gates r, z, n on top of each other, as PyTorch keeps them
        w[f"{side}.ih"], w[f"{side}.hh"] = some(3 * UNITS, width), some(3 * UNITS, UNITS)
        w[f"{side}.bih"], w[f"{side}.bhh"] = some(3 * UNITS, size=0.3), some(3 * UNITS, size=0.3)
    w["score"] = some(UNITS, UNITS)
    w["mix"], w["mix.b"] = some(UNITS, 2 * UNITS), some(UNITS, size=0.2)
    w["words"], w["words.b"] = some(TARGET_WORDS, UNITS), some(TARGET_WORDS, size=0.2)
    return w


def sentences(seed):
    rng = np.random.default_rng(seed)
    return (
        rng.integers(2, SOURCE_WORDS, (3, SOURCE_LENGTH)),
        rng.integers(2, TARGET_WORDS, (3, TARGET_LENGTH)),
    )
