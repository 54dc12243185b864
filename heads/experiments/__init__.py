"""Grids of heads on stores, fitted, cross-fitted and saved as runs."""
