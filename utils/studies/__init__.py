"""Studies: what a network does under conditions that no table shows."""
