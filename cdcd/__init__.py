"""Cross-modal generation by discrete contrastive diffusion."""

MODEL_FORMAT = 1
"""Of registered models: which artifacts they hold and what these mean; raised when that changes."""
