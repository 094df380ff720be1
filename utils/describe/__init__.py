"""Models that write a paragraph on every image (FILM, section 3.1)."""
