"""Entry points, each started as ``python -m experiments.<name>`` and configured by Hydra."""
