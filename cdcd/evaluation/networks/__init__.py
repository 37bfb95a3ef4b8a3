"""Published networks that evaluation looks through; their weights are given by path."""
