"""Records and artifacts on disk."""
