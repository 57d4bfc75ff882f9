"""Measures of samples against data: plain NumPy on saved uint8 images, the same for every framework.

A metric reads files or arrays and knows neither the network nor the framework that made them.

May import: model, data, statistics, files and below; not runs.
"""
