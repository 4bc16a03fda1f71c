"""The policy's own answers, with an advantage for each token."""
