"""Stand-in downloads made here, in the layout of the real ones, for data that may not ship."""
