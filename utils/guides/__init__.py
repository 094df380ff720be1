"""What guides a fusion: text and CLIP."""
