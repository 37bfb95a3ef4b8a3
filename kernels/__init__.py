"""The equations: tensors in, tensors out."""
