"""What train and val choose: rows, ensembles, thresholds. Nothing here can reach the logits of test."""
