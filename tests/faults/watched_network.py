"""The tiny network, watched: it notes each image that it computes, and takes its time where it is told to."""

from __future__ import annotations

import os
import time

import torch
from tiny_network import Tiny

NOTES = "WATCHED_NOTES"
"""Names the file that gets a byte for each image and view, from all processes together. What is of one colour, such as
the image that finds D and those that fill a batch up, is none."""

SECONDS = "WATCHED_SECONDS"
"""Names the seconds that each takes."""


class Watched(Tiny):
    """Its maps are those of ``Tiny``."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """The last map."""
        maps = super().forward(pixels)
        time.sleep(float(os.environ.get(SECONDS, "0")))
        least, most = pixels.flatten(1).aminmax(dim=1)
        if NOTES in os.environ:
            notes = os.open(os.environ[NOTES], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.write(notes, bytes(int((least < most).sum())))
            os.close(notes)
        return maps
