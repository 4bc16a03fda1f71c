"""Models that score an answer or its steps."""
