"""The loop that drives any objective. Knows no DeBERTa."""
