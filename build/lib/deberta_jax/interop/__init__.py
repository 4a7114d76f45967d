"""Checkpoints of others: `transformers` and the released files."""
