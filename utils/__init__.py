"""Data, text features, losses, metrics and the small tools that the scripts share."""
