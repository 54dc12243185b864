"""Images to compare heads on: a published worked example, and random ones of patients with several images."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

# The 43 complete records of DeLong, DeLong and Clarke-Pearson (1988): albumin, total protein and K-G score (reversed,
# so that more is better) of patients with ovarian cancer, and whether surgery helped. As SAS/STAT's guide to PROC
# LOGISTIC prints them ("Comparing Receiver Operating Characteristic Curves"), with the areas and errors below.
RECORDS = """
30 58 10 0  32 63 5 1  39 68 3 1  28 48 6 0  32 58 3 1  09 40 5 0  25 57 8 0  16 56 5 1  38 57 5 1  37 67 6 1
32 54 4 1  38 66 6 1  41 66 5 1  36 57 5 1  43 70 4 1  36 67 4 0  23 44 6 1  42 76 4 0  40 66 6 0  35 58 6 1
38 68 7 1  30 47 8 0  45 74 5 1  37 74 5 1  31 66 6 1  41 82 6 1  43 70 5 1  43 65 4 1  32 51 5 1  26 47 6 1
33 68 6 0  17 40 7 0  37 61 5 1  33 63 7 1  42 77 6 1  35 62 5 1  29 57 9 0  21 48 7 1  28 62 8 0  40 70 7 1
33 57 6 1  37 69 5 1  36 66 5 1
"""


def delong_1988() -> tuple[dict[str, NDArray[np.float64]], NDArray[np.bool_]]:
    table = np.array(RECORDS.split(), float).reshape(-1, 4)
    return {"albumin": table[:, 0], "protein": table[:, 1], "k-g": 10 - table[:, 2]}, table[:, 3] == 1


def sample(seed: int, n: int = 200, people: int = 120) -> tuple[NDArray[Any], NDArray[np.bool_], NDArray[Any]]:
    """Probabilities, truth and patients, a few of whom have images of both classes."""
    random = np.random.default_rng(seed)
    patient = random.integers(people, size=n)
    truth = (patient % 3 > 0) ^ (random.random(n) < 0.05)
    return ndtr(random.normal(np.where(truth, 0.8, -0.8))), truth, patient
