"""One head as a scikit-learn classifier, for pipelines, searches and cross-validation on features in memory."""

# ruff: noqa: N803 - X and X_val are the names that scikit-learn's checks and metadata routing go by

from __future__ import annotations

from operator import index
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from heads.statistics.metrics import probabilities
from heads.training.config import ClassWeights, HeadConfig
from heads.training.model import BATCHNORM_EPSILON, CHUNK, HeadWeights
from heads.training.samples import Samples
from heads.training.train import History, fit
from heads.training.windows import IntArray


class HeadClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn ships no types
    """Dense(H, L2) → ReLU → BatchNorm → Dense(K) → softmax on features, stopped early on validation samples.

    The head is the one that ``heads.fit`` makes of the same samples and the configuration of the same fields.
    Features of one view only; heads that draw among views, and grids trained at once, are ``heads.fit``'s.
    It trains on the CPU.

    Args:
        hidden: hidden units H; 0 makes a linear head (softmax regression).
        l2: λ of the penalty λ·Σw² on the first Dense kernel.
        lr: Adam's learning rate.
        epochs: passes over the train samples at most.
        patience: epochs in a row without a lower validation loss after which the head stops.
        batch_size: samples a step.
        class_weights: ``balanced`` weighs class k by n/(K·n_k) of the train samples, ``none`` by 1.
        validation_fraction: the share of each class that ``fit`` holds out of its samples to stop the head and
            to choose its epoch. Not read where ``fit`` is given validation samples.
        random_state: an integer is the head's seed, which determines the split, the initial weights and the
            shuffles; a ``RandomState``, or numpy's global one for None, is drawn a seed from at every fit.

    Attributes:
        classes_: the labels, sorted, [K].
        n_features_in_: D.
        feature_names_in_: the columns of a data frame with names of text, [D]; not set by other X.
        config_: the head config, with the seed that was drawn.
        weights_: the weights of the best epoch, float32.
        history_: a figure an epoch.
        best_epoch_: the epoch of the lowest validation loss, from 0.
    """

    def __init__(
        self,
        *,
        hidden: int = 256,
        l2: float = 0.0,
        lr: float = 1e-3,
        epochs: int = 50,
        patience: int = 10,
        batch_size: int = 256,
        class_weights: ClassWeights = "balanced",
        validation_fraction: float = 0.2,
        random_state: int | np.random.RandomState | None = 0,
    ) -> None:
        # Nothing is checked here: scikit-learn's clone and set_params rely on it.
        self.hidden = hidden
        self.l2 = l2
        self.lr = lr
        self.epochs = epochs
        self.patience = patience
        self.batch_size = batch_size
        self.class_weights = class_weights
        self.validation_fraction = validation_fraction
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: ArrayLike, X_val: ArrayLike | None = None, y_val: ArrayLike | None = None) -> Self:
        """Train the head.

        The split that is made without ``X_val`` knows no patients: where several samples are of one, give
        validation samples of other patients. A ``Pipeline`` hands ``X_val`` on untransformed, unless its
        ``transform_input`` names it.

        Args:
            X: features, [N, D], any real type; trained on as float32.
            y: labels of at least two classes, [N].
            X_val: features of the validation samples, [M, D].
            y_val: their labels, all of which occur in ``y``, [M].

        Returns:
            The classifier itself.

        Raises:
            ValueError: an array, a label or a parameter is not as above, or there is nothing to validate on.
            TypeError: a parameter that counts is not whole.
            RunError: the loss was not finite in the first epoch.
        """
        features, y = validate_data(self, X, y, dtype=np.float32, ensure_min_samples=2)
        check_classification_targets(y)
        classes, labels = np.unique(y, return_inverse=True)
        labels = labels.astype(np.int64)
        if len(classes) < 2:
            raise ValueError(f"HeadClassifier: wanted two classes or more, got one class, {classes.tolist()[0]!r}")
        config = self._config()
        if X_val is None and y_val is None:
            held_out = validation_rows(labels, self.validation_fraction, config.seed)
            validation = features[held_out], labels[held_out]
            features, labels = features[~held_out], labels[~held_out]
        elif X_val is None or y_val is None:
            raise ValueError("HeadClassifier: wanted both X_val and y_val or neither, got one of them")
        else:
            validation = self._validation(X_val, y_val, classes)
        train, val = (
            Samples(features=features[:, None], labels=labels, classes=len(classes))
            for features, labels in ((features, labels), validation)
        )
        (head,) = fit(train, val, [config])
        self.classes_ = classes
        self.config_ = config
        self.weights_: HeadWeights = head.weights
        self.history_: History = head.history
        self.best_epoch_ = head.best_epoch
        return self

    def _config(self) -> HeadConfig:
        state = self.random_state
        if state is None or isinstance(state, np.random.RandomState):
            state = int(check_random_state(state).randint(2**31 - 1))
        # A search hands in numpy's numbers; index() refuses what is not whole.
        return HeadConfig(
            hidden=index(self.hidden),
            l2=float(self.l2),
            lr=float(self.lr),
            epochs=index(self.epochs),
            patience=index(self.patience),
            batch_size=index(self.batch_size),
            class_weights=self.class_weights,
            view_policy="clean",
            seed=index(state),
        )

    def _validation(
        self, X_val: ArrayLike, y_val: ArrayLike, classes: NDArray[Any]
    ) -> tuple[NDArray[np.float32], IntArray]:
        """Return the given validation samples as features [M, D] and class indices [M]."""
        features, y = validate_data(self, X_val, y_val, reset=False, dtype=np.float32)
        if unknown := sorted(set(y.tolist()) - set(classes.tolist()), key=str):
            raise ValueError(f"HeadClassifier: wanted the classes of y in y_val, got {unknown[0]!r} too")
        return features, np.searchsorted(classes, y).astype(np.int64)

    def _logits(self, X: ArrayLike) -> NDArray[np.float64]:
        check_is_fitted(self)
        return logits_float64(self.weights_, validate_data(self, X, reset=False, dtype=np.float32))

    def decision_function(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the logits.

        Args:
            X: features, [N, D].

        Returns:
            For K > 2 the logits, [N, K]; for two classes the second's logit less the first's, [N].
        """
        result = self._logits(X)
        if len(self.classes_) > 2:
            return result
        difference: NDArray[np.float64] = result[:, 1] - result[:, 0]
        return difference

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the probability of each class, [N, K], for features X, [N, D]."""
        return probabilities(self._logits(X))

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Return the label of the highest probability, [N], for features X, [N, D]."""
        decided = self._logits(X).argmax(axis=1)
        labels: NDArray[Any] = self.classes_[decided]
        return labels


def logits_float64(weights: HeadWeights, features: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return a head's logits, [N, K], for features [N, D]: ``heads.training.model.logits`` worked out in float64.

    In float32 a sample's logits differ by some 1e-7 with the samples beside it, as the BLAS takes another
    kernel for another shape; scikit-learn wants them equal to 1e-7.
    """
    result = np.empty((len(features), weights.bias.size))
    for start in range(0, len(features), CHUNK):
        x = features[start : start + CHUNK].astype(np.float64)
        if (layer := weights.hidden) is not None:
            x = np.maximum(x @ layer.kernel + layer.bias, 0)
            scale = layer.gamma / np.sqrt(layer.running_var.astype(np.float64) + BATCHNORM_EPSILON)
            x = (x - layer.running_mean) * scale + layer.beta
        result[start : start + CHUNK] = x @ weights.kernel + weights.bias
    return result


def validation_rows(labels: IntArray, fraction: float, seed: int) -> NDArray[np.bool_]:
    """Choose the samples that are held out: the fraction of each class, to the nearest sample.

    A class of two or more has at least one on either side; the sample of a class of one is trained on, since
    a class that is never seen could not be told. scikit-learn's own splitters refuse such classes.

    Args:
        labels: class of each sample, [N].
        fraction: the share to hold out.
        seed: determines the choice, together with the labels.

    Returns:
        Which samples are held out, [N].

    Raises:
        ValueError: the fraction is not between 0 and 1, or every class has one sample only.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"HeadClassifier: wanted 0 < validation_fraction < 1, got {fraction}")
    # The spawn key keeps the stream apart from those of the epochs, which are seeded by (seed, epoch).
    generator = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0,)))
    held_out = np.zeros(len(labels), dtype=np.bool_)
    for label in np.unique(labels):
        rows = generator.permutation(np.flatnonzero(labels == label))
        if len(rows) > 1:
            count = min(max(round(fraction * len(rows)), 1), len(rows) - 1)
            held_out[rows[:count]] = True
    if not held_out.any():
        what = f"every class of y has one sample ({len(labels)} in all), so none can be held out"
        raise ValueError(f"HeadClassifier: {what}: give X_val and y_val")
    return held_out
