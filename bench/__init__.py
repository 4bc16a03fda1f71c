"""What the claims of the docs are measured with. Both sides in one run, medians of several."""
