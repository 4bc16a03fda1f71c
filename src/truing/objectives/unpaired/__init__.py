"""Single answers with a verdict."""
