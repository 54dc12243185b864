"""A fitted head put to use: its word on new films, how far they lie from what it knows, and how it is handed on."""
