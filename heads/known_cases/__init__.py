"""Nearest films, near-duplicates and doubtful labels, by cached features."""
