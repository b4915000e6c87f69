"""The label of a position that is no target."""

IGNORED_LABEL = -100
"""In the words of torch's cross-entropy. Such a token has no nll; where it has a place in the loss it is only distilled."""
