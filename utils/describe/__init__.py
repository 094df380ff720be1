"""Models that write a paragraph on every image (FILM, section 3.1)."""

from utils.describe.command import main as main
