"""What is measured beyond single kernels; results are committed as Markdown beside the code."""
