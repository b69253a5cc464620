"""How well the overcompletion detector decides, and what it is fitted to."""
