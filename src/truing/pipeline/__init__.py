"""A recipe's stages as a graph, run in order, each in a run directory of its own."""
