"""What a model is worth: sentence likelihoods, filled masks, continuations, result tables."""
