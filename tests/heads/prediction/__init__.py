"""A fitted head put to use."""
