"""What work costs, from sizes alone: arithmetic for now. No torch."""
