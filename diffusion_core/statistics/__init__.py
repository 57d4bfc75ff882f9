"""Statistics of results over seeds: what differs, by how much, and what the data exclude."""

from diffusion_core.statistics.bootstrap import Interval, bootstrap_interval

__all__ = ["Interval", "bootstrap_interval"]
