"""Official dataset layouts to samples."""
