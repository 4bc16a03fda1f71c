"""Prompts to groups: sample, score, credit. What on-policy training adds to the common loop."""
