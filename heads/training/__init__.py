"""Features to heads: models, gradients, batched training in memory and beyond it."""
