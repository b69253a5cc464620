"""The sample catalogue that `make demo` runs on when nobody names another (package data)."""

from __future__ import annotations

from pathlib import Path

CATALOGUE = Path(__file__).with_name("catalog.csv")
