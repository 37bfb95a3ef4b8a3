"""The denoiser and its conditioner."""
