"""How well generated music fits its dance: scores, controls, statistics and the report."""
