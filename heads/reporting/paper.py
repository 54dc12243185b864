"""The rows of the study that the table is held against."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class PaperRow:
    """A row of the study's table: accuracies in percent, loss with Keras' penalty added in."""

    name: str
    val_accuracy: float
    test_accuracy: float
    test_loss: float


PAPER = (
    PaperRow(name="InceptionV3", val_accuracy=94.14, test_accuracy=79.81, test_loss=0.5028),
    PaperRow(name="VGG19", val_accuracy=91.04, test_accuracy=84.01, test_loss=0.5791),
    PaperRow(name="EfficientNetB4", val_accuracy=96.5, test_accuracy=78.17, test_loss=0.5403),
    PaperRow(name="ResNet50", val_accuracy=98.08, test_accuracy=90.77, test_loss=0.2251),
    PaperRow(name="EfficientNetB4 + L2", val_accuracy=94.49, test_accuracy=84.96, test_loss=1.2863),
    PaperRow(name="ResNet50 + L2", val_accuracy=95.04, test_accuracy=92.34, test_loss=0.3553),
)

PAPER_FINAL = (
    "the paper's final ResNet50 + L2: accuracy 91.51, sensitivity 0.9205, specificity 0.9060, F1 0.9313, AUC 0.9706, "
    "TN 212, FP 22, FN 31, TP 359; its test losses include the L2 penalty, ours are the cross-entropy alone"
)
"""The study's own evaluation of its final head."""
