"""Instructions: sentences that say what is wanted of a fusion."""
