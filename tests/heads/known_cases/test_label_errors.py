from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from synthetic import images

from featcache.errors import DataError
from featcache.images import ImageTable
from featcache.splits import patient_groups
from heads.known_cases.label_errors import PENALTY, confident_joint, label_candidates, out_of_fold
from heads.known_cases.nearest import directions

COUNTS = {"train": (150, 350), "val": (8, 8), "test": (60, 90)}


@pytest.fixture(scope="module")
def table() -> ImageTable:
    """Three films a patient."""
    return images(COUNTS, films=3)


@pytest.fixture(scope="module")
def features(table: ImageTable) -> NDArray[np.float32]:
    """Two classes that overlap by some three in a hundred."""
    rng = np.random.default_rng(0)
    features = rng.gamma(2.0, 1.0, (len(table), 32))
    features[:, :10] *= np.where(table.label == 1, 2.2, 0.75)[:, None]
    return features.astype(np.float32)


def flipped(table: ImageTable, share: float, seed: int = 1) -> tuple[ImageTable, set[str]]:
    rows = np.random.default_rng(seed).choice(len(table), round(share * len(table)), replace=False)
    label = table.label.copy()
    label[rows] = 1 - label[rows]
    return dataclasses.replace(table, label=label), set(table.image_id[rows])


def test_planted_errors_head_the_list(table: ImageTable, features: NDArray[np.float32]) -> None:
    wrong, planted = flipped(table, 0.02)
    found = label_candidates(wrong, features)
    truth = dict(zip(table.image_id, table.label.tolist(), strict=True))
    named = [candidate.image_id for candidate in found]
    assert len(planted & set(named[: len(planted)])) >= 0.6 * len(planted)
    assert len(planted & set(named[: round(0.05 * len(table))])) >= 0.85 * len(planted)
    for candidate in found:
        if candidate.image_id in planted:
            assert candidate.rather == table.classes[truth[candidate.image_id]]
    confidence = [candidate.self_confidence for candidate in found]
    assert confidence == sorted(confidence)
    confident = {candidate.image_id for candidate in found if candidate.confident}
    assert len(confident & planted) >= max(0.6 * len(planted), 0.8 * len(confident))


def test_no_film_is_judged_by_one_of_its_own_patient(table: ImageTable) -> None:
    # Features that name the patient, and labels drawn by lot: whoever sees a patient's film knows the others' label.
    patient = patient_groups(table)
    rng = np.random.default_rng(0)
    features = rng.gamma(1.0, 1.0, (patient.max() + 1, 400))[patient]
    lot = dataclasses.replace(table, label=rng.integers(0, 2, patient.max() + 1)[patient])
    probability = out_of_fold(lot, features)
    right = (probability.argmax(axis=1) == lot.label).mean()
    assert right < 0.6
    seen = make_pipeline(StandardScaler(), LogisticRegression()).fit(features[::2], lot.label[::2])
    assert seen.score(features[1::2], lot.label[1::2]) > 0.8


def test_patients_who_share_a_film_count_as_one(table: ImageTable) -> None:
    # As above, but each patient has half of its films under another number, and one of them under both.
    patient = patient_groups(table)
    rng = np.random.default_rng(0)
    features = rng.gamma(1.0, 1.0, (patient.max() + 1, 400))[patient]
    label = rng.integers(0, 2, patient.max() + 1)[patient]
    again = table.take(np.concatenate([np.arange(len(table)), np.arange(len(table))]))
    renamed = again.patient_id.copy()
    renamed[len(table) :] = [f"{name} again" for name in table.patient_id]
    doubled = dataclasses.replace(again, patient_id=renamed, label=np.concatenate([label, label]))
    probability = out_of_fold(doubled, np.concatenate([features, features]))
    assert (probability.argmax(axis=1) == doubled.label).mean() < 0.6


def test_probabilities_are_those_of_a_softmax_regression_fitted_on_the_other_folds(
    table: ImageTable, features: NDArray[np.float32]
) -> None:
    probability = out_of_fold(table, features, seed=3)
    inputs, patient = directions(features).astype(np.float64), patient_groups(table)
    folds = StratifiedGroupKFold(5, shuffle=True, random_state=3)
    for fitted, out in folds.split(inputs, 2 * table.label + (table.split == "test"), patient):
        assert not set(patient[fitted]) & set(patient[out])
        mean, sd = inputs[fitted].mean(axis=0), inputs[fitted].std(axis=0)
        head = LogisticRegression(C=1 / (PENALTY * len(fitted)), tol=1e-8, max_iter=5000)
        head.fit((inputs[fitted] - mean) / sd, table.label[fitted])
        np.testing.assert_allclose(probability[out], head.predict_proba((inputs[out] - mean) / sd), atol=0.01)


def test_the_confident_joint_is_that_of_a_plain_loop() -> None:
    rng = np.random.default_rng(0)
    probability = rng.dirichlet([0.7, 0.7, 0.7], 200)
    label = np.array([rng.choice(3, p=p) for p in probability])
    threshold = [np.mean([p[j] for p, k in zip(probability, label, strict=True) if k == j]) for j in range(3)]
    expected = []
    for p in probability:
        confident = [j for j in range(3) if p[j] >= threshold[j]]
        expected.append(max(confident, key=lambda j: p[j]) if confident else -1)
    assert {-1, 0, 1, 2} == set(expected)
    assert confident_joint(probability, label).tolist() == expected


def test_a_class_of_few_patients_is_told(table: ImageTable, features: NDArray[np.float32]) -> None:
    few = table.take(np.flatnonzero((table.label == 1) | (np.arange(len(table)) < 6)))
    with pytest.raises(DataError, match=r"^NORMAL has 2 patients, wanted 5 or more"):
        out_of_fold(few, features[: len(few)])


def test_three_classes_are_doubted_too() -> None:
    table = images({"train": (90, 90, 90), "test": (4, 4, 4)}, films=2)
    features = np.random.default_rng(0).gamma(2.0, 1.0, (len(table), 30))
    for number in range(3):
        features[table.label == number, 5 * number : 5 * number + 5] *= 2.5
    label = table.label.copy()
    label[[100, 150]] = (label[[100, 150]] + 1) % 3
    found = label_candidates(dataclasses.replace(table, label=label), features)
    assert set(table.image_id[[100, 150]]) <= {candidate.image_id for candidate in found[:10]}
    (one,) = [candidate for candidate in found if candidate.image_id == table.image_id[100]]
    assert one.rather == table.classes[table.label[100]]
    assert one.cells()[1:3] == (one.label, one.rather)
