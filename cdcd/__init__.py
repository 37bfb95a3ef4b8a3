"""Cross-modal generation by discrete contrastive diffusion."""
