"""Films whose label the other patients' films contradict.

Out of fold: each film's probabilities come from a softmax regression that has seen no film of its patient. A film is
listed where another class is likelier than the one it bears, ranked by self-confidence, the probability of the label
that it bears; it is marked where confident learning (Northcutt, Jiang, Chuang, Journal of Artificial Intelligence
Research 70, 2021) counts it too: where the other class is as likely as for the films that bear its label.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from featcache.errors import DataError
from featcache.images import ImageTable
from featcache.splits import patient_groups
from heads.known_cases.nearest import directions

FOLDS = 5

PENALTY = 0.1
"""λ of mean cross-entropy + λ/2·|w|², on standardised inputs. Between 0.02 and 0.2 three backbones find planted errors
about equally well; at a tenth of that films are fitted one by one, at ten times of it too little is (docs/log.md)."""

COLUMNS = ("Self-confidence", "Label", "Rather", "Confident", "Split", "Patient", "Image")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelCandidate:
    """A film whose label may be wrong.

    Attributes:
        image_id: which.
        label: the class that it bears.
        rather: the class that the films of other patients speak for.
        self_confidence: out-of-fold probability of ``label``.
        probability: out-of-fold probability of ``rather``.
        confident: whether confident learning counts it for ``rather``.
        patient_id: its patient.
        split: its folder.
    """

    image_id: str
    label: str
    rather: str
    self_confidence: float
    probability: float
    confident: bool
    patient_id: str
    split: str

    def cells(self) -> tuple[str, ...]:
        """The candidate as text, in the columns of ``COLUMNS``."""
        return (
            f"{self.self_confidence:.4f}",
            self.label,
            self.rather,
            "yes" if self.confident else "",
            self.split or "–",
            self.patient_id,
            self.image_id,
        )


def label_candidates(table: ImageTable, features: NDArray[np.floating], *, seed: int = 0) -> tuple[LabelCandidate, ...]:
    """The films whose labels may be wrong, the least credible first.

    Args:
        table: the images; their labels are what is doubted.
        features: of the clean view, [N, D].
        seed: decides the folds.

    Raises:
        DataError: a class has too few patients to hold some out.
    """
    probability, label = out_of_fold(table, features, seed=seed), table.label
    likeliest, counted = probability.argmax(axis=1), confident_joint(probability, label)
    listed = np.flatnonzero((likeliest != label) | ((counted >= 0) & (counted != label)))
    ranked = listed[np.argsort(probability[listed, label[listed]], kind="stable")]
    # Where classes are rare, the likeliest may be the film's own and confident learning still speak for another.
    rather = np.where((counted >= 0) & (counted != label), counted, likeliest)
    return tuple(
        LabelCandidate(
            image_id=table.image_id[row],
            label=table.classes[label[row]],
            rather=table.classes[rather[row]],
            self_confidence=float(probability[row, label[row]]),
            probability=float(probability[row, rather[row]]),
            confident=bool(counted[row] == rather[row]),
            patient_id=table.patient_id[row],
            split=table.split[row],
        )
        for row in ranked
    )


def out_of_fold(table: ImageTable, features: NDArray[np.floating], *, seed: int = 0) -> NDArray[np.float64]:
    """Probabilities [N, K] of each film by heads that have seen none of its patient's films.

    Folds hold as much of each class, and of the test folder, as whole patients allow; patients who share a film count
    as one. Inputs are directions (``heads.known_cases.nearest``), standardised in each fold by what it is fitted on.

    Raises:
        DataError: a class has too few patients to hold some out.
    """
    patient, label, inputs = patient_groups(table), table.label, directions(features)
    for index, name in enumerate(table.classes):
        count = len(np.unique(patient[label == index]))
        if count < FOLDS:
            raise DataError(
                f"{name} has {count} patients, wanted {FOLDS} or more: labels are doubted by what other patients say"
            )
    stratum = 2 * label + (table.split == "test")
    if np.bincount(stratum)[np.unique(stratum)].min() < FOLDS:
        stratum = label
    probability = np.zeros((len(table), len(table.classes)))
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    for fitted, held in folds.split(inputs, stratum, patient):
        absent = np.setdiff1d(np.arange(len(table.classes)), label[fitted])
        if len(absent):
            raise DataError(f"{table.classes[absent[0]]} has too few patients to be divided into {FOLDS} folds")
        # scikit-learn weighs the sum of the losses, so its C falls with their number.
        head = LogisticRegression(C=1 / (PENALTY * len(fitted)), tol=1e-3, max_iter=1000)
        model = make_pipeline(StandardScaler(), head).fit(inputs[fitted], label[fitted])
        probability[held] = model.predict_proba(inputs[held])
    return probability


def confident_joint(probability: NDArray[np.float64], label: NDArray[np.int64]) -> NDArray[np.int64]:
    """The class that each film is counted for in the confident joint, [N]; -1 for those it does not count.

    Northcutt et al. 2021, equations 1 and 2: t_j is the mean probability of j over films labelled j; a film is counted
    for the likeliest of the classes j with p_j ≥ t_j, if there is one. Off the diagonal are the label errors.

    Args:
        probability: out of fold, [N, K].
        label: [N], every class at least once.
    """
    threshold = np.array([probability[label == j, j].mean() for j in range(probability.shape[1])])
    confident = np.where(probability >= threshold, probability, -1.0)
    return np.where(confident.max(axis=1) >= 0, confident.argmax(axis=1), -1)
