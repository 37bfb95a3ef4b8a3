"""What a sample is and how it travels."""
