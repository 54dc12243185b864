"""Answers about new films, and how far to trust them."""
