"""Text-to-image models: presets, the denoising loop, decoders."""
