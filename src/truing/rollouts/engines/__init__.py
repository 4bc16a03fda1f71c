"""What draws completions. Every engine takes and returns the same: see base.py."""
