"""Assembling a run from its config, and opening one that is there: what the verbs share."""
