"""From files on disk to batches."""

import net  # noqa: F401  first: a network may bring a feature of its own, which utils/data/features.py has to know
