"""Makes `python -m docs.generate` work from the checkout."""
