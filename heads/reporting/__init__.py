"""Runs to the comparison table, notes and pictures; the one place where the logits of test are opened."""
