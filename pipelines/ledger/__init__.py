"""The step ledger: which steps ran, which run used them for which shot, and what was published."""
