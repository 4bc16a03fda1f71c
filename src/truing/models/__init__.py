"""Tokens to numbers: loading, the shared-prompt forward pass, log-probs, heads, roles."""
