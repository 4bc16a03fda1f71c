"""Published patterns of preference learning, tried again small: `python -m experiments.NAME`."""
