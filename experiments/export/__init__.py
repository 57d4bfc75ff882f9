"""Weights that come from elsewhere, go elsewhere, or are reconstructed: imports, exports and EMA profiles.

It takes frozen dataclasses and plain values and knows no configuration.
"""
