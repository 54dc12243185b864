"""Figures, intervals, paired tests, calibration, operating points."""
