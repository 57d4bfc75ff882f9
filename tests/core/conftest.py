"""One Hypothesis profile for the core: the same examples on every run."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("duet", derandomize=True, max_examples=40, deadline=None, database=None)
settings.load_profile("duet")
