"""The model card of a bundle: what it is for, what it was made of, how good it is and where it ends.

Its form is that of Hugging Face's cards: YAML in front, Markdown below. Its figures are of test, with intervals.
"""

from __future__ import annotations

import json
from importlib.metadata import version

from featcache.spec import packages_of
from heads.choosing.rows import Row
from heads.prediction.look_at_test import Tested
from heads.prediction.model import Model
from heads.reporting.figures import DECIDED
from heads.statistics.intervals import Interval

HUB_NAMES = {
    "accuracy": "accuracy",
    "auc": "roc_auc",
    "sensitivity": "recall",
    "specificity": "specificity",
    "f1": "f1",
}
"""Our figures by what the hub calls them."""


USE = """## How to use it

```
pip install cxr
cxr predict --bundle . FILM…
```

Films are decoded, and networks run, as when the heads were fitted, or not at all: it wants {packages}{runtime}.

It reads JPEG, PNG and DICOM. In Python: `load_bundle` of `heads.prediction.bundle`, `Predictor` of
`heads.prediction.predictor`."""

INTENDED = """## Intended use

Research: comparing frozen backbones and heads, teaching, and as a baseline for studies on chest radiographs like those
that it was fitted on.

## Out of scope

It is not a medical device. Nothing that it says is a diagnosis, nor may it sort patients, films or worklists, or stand
in for a reader. It knows the classes below and no other finding. Films of other hospitals, detectors, ages or
projections than those of its data set are out of scope until it has been tested on them."""

TRUST = """Every answer says how far the image lies from the train images, as the percentile of val that lies nearer.
Past {limit:g} it is flagged: do not trust it. That is to find photographs, blank images, other parts of the body,
negatives and turned films. It does not find that a chest film is of another hospital or age, and an answer that is not
flagged may be wrong all the same.{share}{blind}

Measured on Kermany's radiographs with other heads, on EfficientNet-Lite0 and Lite2, SqueezeNet 1.1 and MobileNetV2,
not on this bundle (docs/trust.md of cxr): all photographs, blank images, noise, negatives and films turned by 45° or
90° were flagged, of films turned by 180° 98.5 % or more, of those turned by 15° 28 to 36 %, of mirrored ones 9 to 11 %,
of the official test films 7 to 8 %, of the normal ones among them 16 to 17 %. Of other parts of the body only drawn
legs were tried, which were all flagged."""

LICENCE = """## Licence

The heads: {licence}. cxr: Apache-2.0. The backbone's weights and the data set have licences of their own, which hold
for what is made of them: look at where they come from."""


def card_of(model: Model, row: Row, test: Tested, licence: str = "unknown", *, by_hand: bool = False) -> str:
    """The card, Markdown with YAML in front.

    Args:
        model: what is described.
        row: the row that it was made of.
        test: what test says of it.
        licence: of the heads, as the hub spells licences.
        by_hand: whether the user named the row, so that it was not val that chose it.
    """
    specs = [source.spec for source in model.sources]
    packages = " and ".join(dict.fromkeys(f"`pip install {packages_of(spec.decoder)}`" for spec in specs))
    runtimes = " and ".join(dict.fromkeys(f"{spec.runtime} in {spec.precision}" for spec in specs))
    use = USE.format(packages=packages, runtime=f", and {runtimes}")
    sections = [_front(model, test, licence), f"# {model.name}", _summary(model), use, INTENDED]
    sections += [
        _data(model, row, by_hand=by_hand),
        _figures(model, test),
        _trust(model, test),
        _limits(model, row, test),
        _provenance(model),
    ]
    return "\n\n".join([*sections, LICENCE.format(licence=licence)]) + "\n"


def _front(model: Model, test: Tested, licence: str) -> str:
    """YAML whose strings are JSON's, which YAML reads too."""
    figures = {name: test.figures.interval(name) for name in HUB_NAMES}
    lines = [f"license: {json.dumps(licence)}", "library_name: cxr", "pipeline_tag: image-classification", "tags:"]
    lines += ["- chest-x-ray", "- medical-imaging", "- frozen-backbone", "- research-use-only", "model-index:"]
    lines += [f"- name: {json.dumps(model.name)}", "  results:", "  - task:", "      type: image-classification"]
    lines += ["    dataset:", f"      name: {json.dumps(model.dataset)}", f"      type: {json.dumps(model.dataset)}"]
    lines += ["      split: test", "    metrics:"]
    for name, interval in figures.items():
        if interval is not None:
            where = "" if name == "auc" or len(model.classes) != 2 else " at threshold 0.5"
            said = f"{name}{where}, 95 % interval {interval.low:.4f} to {interval.high:.4f}"
            lines += [
                f"    - type: {HUB_NAMES[name]}",
                f"      value: {interval.value:.4f}",
                f"      name: {json.dumps(said)}",
            ]
    return "\n".join(["---", *lines, "---"])


def _summary(model: Model) -> str:
    networks = ", ".join(f"`{source.spec.backbone}` ({source.spec.image_size} px)" for source in model.sources)
    heads = sum(len(member.heads) for member in model.members)
    what = "a head" if heads == 1 else f"the mean of {heads} heads"
    return (
        f"{what[0].upper()}{what[1:]} on the features of frozen {networks}, which tells {' from '.join(model.classes)} "
        "on chest radiographs.\n\n> **Research use only. Not a medical device.**"
    )


def _data(model: Model, row: Row, *, by_hand: bool) -> str:
    chosen = (
        "The head was named by hand; whether test had a say in that is not known. Val chose its temperature and its "
        "thresholds."
        if by_hand
        else "Val chose the head, its temperature and its thresholds; test was looked at when all that was done."
    )
    n, rule = row.run.n, row.run.split_rule
    apart = {
        "patient": "no patient is in both train and val",
        "paper": f"{row.run.straddling} patients have images in both train and val, so figures of val flatter",
        "folders": "as the folders are",
    }[rule]
    return (
        f"## Data\n\nFitted on `{model.dataset}`: {n['train']} train, {n['val']} val and {n['test']} test images, "
        f"split `{rule}` ({apart}). Classes: {', '.join(model.classes)}; positive is {model.classes[model.positive]}. "
        f"{chosen}"
    )


def _figures(model: Model, test: Tested) -> str:
    figures = test.figures
    before, after, temperature = figures.calibration, figures.scaled, model.choices["clean"].temperature
    lines = ["## Figures", ""]
    n, patients = test.measured.n, test.measured.patients
    lines += [f"On test, {n} images of {patients} patients, clean view; 95 % intervals by patient.", ""]
    if len(model.classes) == 2:
        lines += ["| decided at | threshold | accuracy | sensitivity | specificity | F1 |"]
        lines += ["| --- | ---: | ---: | ---: | ---: | ---: |"]
        cuts: list[tuple[str, float, str | None]] = [("0.5", 0.5, None)]
        cuts += [(rule, one.points[0].threshold, rule) for rule, one in figures.points.items()]
        for said, threshold, rule in cuts:
            cells = [_ranged(figures.interval(name, rule)) for name in DECIDED]
            lines.append(f"| {said} | {threshold:.3f} | {' | '.join(cells)} |")
        lines += ["", "Thresholds were chosen on val, on probabilities before the temperature.", ""]
    else:
        lines += [f"Accuracy {_ranged(figures.interval('accuracy'))}.", ""]
    scaled = f"{after.expected_calibration_error:.3f} and {after.brier:.3f}"
    lines += [f"AUC {_ranged(figures.interval('auc'))}.", ""]
    lines += [f"Expected calibration error {before.expected_calibration_error:.3f}, Brier score {before.brier:.3f};"]
    lines += [f"at the temperature {temperature:.2f}, fitted on val, {scaled}."]
    return "\n".join(lines)


def _trust(model: Model, test: Tested) -> str:
    title = "## When not to trust an answer\n\n"
    if model.distance is None:
        return f"{title}This bundle cannot tell how far a film lies from those that it was fitted on."
    flagged = test.measured.flagged
    share = "" if flagged is None else f" Of the test images it flags {100 * flagged:.1f} %."
    blind = "" if len(model.distance.outline) else " It goes by features alone, which hardly know a negative."
    return title + TRUST.format(limit=model.distance.limit, share=share, blind=blind)


def _limits(model: Model, row: Row, test: Tested) -> str:
    lines = [
        "One data set: what it says of films from elsewhere is not known.",
        f"{test.measured.n} test images know an accuracy only to a few points; the intervals say how many.",
        "Test may differ from train in more than the patients, and val then flatters: compare the two in the report.",
        "Text and markers burnt into a film are seen as part of it, and may be what was learnt.",
    ]
    if row.run.n["val"] < 100:
        lines.append(f"Val has only {row.run.n['val']} images: what it chose is mostly chance.")
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in (*lines, *model.notes))


def _provenance(model: Model) -> str:
    rows = [("what", "which"), ("---", "---")]
    for number, spec in enumerate(source.spec for source in model.sources):
        rows.append((f"network {number}", f"`{spec.backbone}`, weights `{spec.weights_sha256}`"))
        rows.append((f"spec {number}", f"`{spec.fingerprint}`"))
    rows += [*model.provenance.items(), ("bundled by cxr", version("cxr"))]
    return "\n".join(["## Provenance", "", *(f"| {left} | {right.replace('|', '/')} |" for left, right in rows)])


def _ranged(interval: Interval | None) -> str:
    return "–" if interval is None else f"{interval.value:.3f} ({interval.low:.3f}–{interval.high:.3f})"
