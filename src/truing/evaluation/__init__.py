"""Numbers about policies and reward models, each with its interval, and the report of a run."""
