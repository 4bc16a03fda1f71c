"""Several scored answers to one prompt."""
