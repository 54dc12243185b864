"""Features to heads, numbers and pictures."""
