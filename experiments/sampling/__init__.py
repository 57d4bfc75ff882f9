"""Sampling from a trained network: options, plans, guidance by other networks, and the files and figures of samples.

It takes checkpoints and frozen dataclasses and knows no configuration, so a notebook can call it.
"""
