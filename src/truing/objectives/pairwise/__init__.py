"""A chosen and a rejected answer to one prompt."""
