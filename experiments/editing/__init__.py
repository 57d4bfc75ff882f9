"""Editing images with a checkpoint: variations, interpolation and inpainting.

It takes frozen dataclasses and knows no configuration, so a notebook can call it.
"""
