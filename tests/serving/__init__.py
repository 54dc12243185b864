"""The web server: what it answers, what it refuses, and how it lives."""
