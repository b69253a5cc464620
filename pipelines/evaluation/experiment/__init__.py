"""The experiment: does the paper's method lower overcompletion? The same pairs and seeds in every cell of one table."""
