"""Sampling responses, rewarding them, and learning from both."""
