"""The commands of Duet, each called as `python3 -m duet NAME` and configured by Hydra."""
