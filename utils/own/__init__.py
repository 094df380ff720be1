"""Pictures and videos of one's own: which belong together, one size, aligned, fused."""
