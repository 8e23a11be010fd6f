"""Frozen CLIP and ViT encoders: image → tokens."""
