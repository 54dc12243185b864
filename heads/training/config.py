"""What makes a head: its configuration, and grids of them.

A configuration is the whole identity of a head beside the data: two heads of equal configuration on equal
data are the same head. Every run keeps it as JSON; ``HeadConfig.from_json`` alone reads it back.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Literal, TypedDict, Unpack, cast, get_args

ClassWeights = Literal["balanced", "none"]
ViewPolicy = Literal["random", "clean"]
HeadPrecision = Literal["float32", "bfloat16"]

BLOCK_IMAGES = 256
"""Images that a shuffle window takes together: they follow one another in the split, and so on the disk."""

_NUMBERS = ("l2", "lr")
_KINDS: dict[str, tuple[str, tuple[type, ...]]] = {  # of the fields that are no whole numbers
    **dict.fromkeys(_NUMBERS, ("a number", (int, float))),
    **dict.fromkeys(("class_weights", "view_policy", "precision"), ("text", (str,))),
    "standardise": ("true or false", (bool,)),
}


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """Everything beside the data that determines a trained head.

    Args:
        hidden: hidden units H; 0 makes a linear head (softmax regression).
        l2: λ of the penalty λ·Σw² on the first Dense kernel, as Keras' ``l2(λ)`` means it.
        lr: Adam's learning rate.
        epochs: passes over the train split at most.
        patience: epochs in a row without a lower val loss after which the head stops.
        batch_size: images a step.
        class_weights: ``balanced`` weighs class k by n/(K·n_k) of the train split, ``none`` by 1.
        view_policy: ``random`` draws one of all views for every image and epoch, ``clean`` takes view 0.
        standardise: train on features less their mean over the train split, divided by their standard deviation; the
            fitted head takes features as they are. The penalty is of the kernel on standardised features.
        precision: ``bfloat16`` computes the products with the features in bfloat16, where the hardware has such
            products; weights, activations, the optimiser and val stay in float32.
        seed: determines the initial weights, the shuffles and the drawn views.
        window: images shuffled among themselves, in whole blocks of 256 (``heads.training.windows``); 0: all of train.

    Raises:
        ValueError: a value is out of its range; the message names it.
    """

    hidden: int = 256
    l2: float = 0.0
    lr: float = 1e-3
    epochs: int = 50
    patience: int = 10
    batch_size: int = 256
    class_weights: ClassWeights = "balanced"
    view_policy: ViewPolicy = "random"
    standardise: bool = False
    precision: HeadPrecision = "float32"
    seed: int = 0
    window: int = 0

    def __post_init__(self) -> None:
        # Two rows a batch at least: BatchNorm has no variance of one.
        for name, lowest in (
            ("hidden", 0),
            ("epochs", 1),
            ("patience", 1),
            ("batch_size", 2),
            ("seed", 0),
            ("window", 0),
        ):
            if getattr(self, name) < lowest:
                raise ValueError(f"head config: wanted {name} >= {lowest}, got {getattr(self, name)}")
        if self.window % BLOCK_IMAGES:
            raise ValueError(f"head config: wanted window in whole blocks of {BLOCK_IMAGES}, got {self.window}")
        if self.seed >= 2**63:  # torch's generator takes no more
            raise ValueError(f"head config: wanted seed < 2**63, got {self.seed}")
        if not (math.isfinite(self.l2) and self.l2 >= 0):
            raise ValueError(f"head config: wanted a finite l2 >= 0, got {self.l2}")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise ValueError(f"head config: wanted a finite lr > 0, got {self.lr}")
        choices = {"class_weights": ClassWeights, "view_policy": ViewPolicy, "precision": HeadPrecision}
        for name, choice in choices.items():
            if getattr(self, name) not in (known := get_args(choice)):
                raise ValueError(f"head config: wanted {name} of {known}, got {getattr(self, name)!r}")

    def to_json(self) -> dict[str, bool | int | float | str]:
        """Return the fields as JSON holds them."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, object]) -> HeadConfig:
        """Parse what ``to_json`` wrote.

        Raises:
            ValueError: a key is unknown or missing, or a value is of the wrong type or out of range.
        """
        names = {field.name for field in fields(cls)}
        if unknown := sorted(values.keys() - names):
            raise ValueError(f"head config: unknown key {', '.join(unknown)}")
        if missing := sorted(names - values.keys()):
            raise ValueError(f"head config: missing key {', '.join(missing)}")
        return cls(**cast("_Fields", {name: _typed(name, values[name]) for name in sorted(names)}))


def _typed(name: str, value: object) -> bool | int | float | str:
    """Return the value if its type is the field's; JSON's ``true`` is no number, its ``0`` is a float too."""
    kind, wanted = _KINDS.get(name, ("a whole number", (int,)))
    if isinstance(value, bool) != (wanted == (bool,)) or not isinstance(value, wanted):
        raise ValueError(f"head config: wanted {kind} for {name}, got {value!r}")
    return float(cast("float", value)) if name in _NUMBERS else cast("bool | int | str", value)


class Fixed(TypedDict, total=False):
    """The fields that are the same for a whole grid."""

    epochs: int
    patience: int
    batch_size: int
    class_weights: ClassWeights
    view_policy: ViewPolicy
    standardise: bool
    precision: HeadPrecision
    window: int


class _Fields(Fixed, total=False):
    hidden: int
    l2: float
    lr: float
    seed: int


def grid(
    *,
    hidden: Sequence[int],
    l2: Sequence[float],
    lr: Sequence[float],
    seeds: Sequence[int],
    **fixed: Unpack[Fixed],
) -> tuple[HeadConfig, ...]:
    """Return every combination, seeds innermost, each once, in the order given.

    Raises:
        ValueError: an axis is empty, or a value is out of range.
    """
    for name, axis in (("hidden", hidden), ("l2", l2), ("lr", lr), ("seeds", seeds)):
        if not axis:
            raise ValueError(f"grid: wanted at least one value of {name}, got none")
    product = (
        HeadConfig(hidden=h, l2=penalty, lr=rate, seed=seed, **fixed)
        for h, penalty, rate, seed in itertools.product(hidden, l2, lr, seeds)
    )
    return tuple(dict.fromkeys(product))
