"""Measurements of packshot itself: `make bench` and `make bench-memory`."""

import pipelines  # noqa: F401  before torch: how threads wait
