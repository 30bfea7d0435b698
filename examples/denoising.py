"""Wrong labels found by a few right ones.

Two in five of the training labels are wrong, and it is not known which. 200 other digits have trusted labels.

    u    one weight for each training digit, w = (tanh u + 1) / 2
    v    the parameters of a small network
    g    the cross-entropy of the training digits by their given labels, weighted by w (and a little l2)
    f    the cross-entropy of the 200 trusted digits

What to look at: the weights end at 0 or at 1, those of wrong labels at 0. The second picture shows the digits of least
weight, with the given label and the predicted one. A red frame marks a wrong label, a blue frame a right one.

    python examples/denoising.py [--quick] [--out DIR]
"""

import argparse
from pathlib import Path

import numpy as np

from bilevax.applications.denoising import ImportanceClassifier, PlainClassifier
from bilevax.data import noisy_digits
from bilevax.plots import contact_sheet, weight_histogram

SHOWN = 20


def main(quick: bool, out: Path) -> dict[str, float]:
    """Weigh the samples, and draw the weights and the most suspect samples."""
    d = noisy_digits(seed=0, noise=0.4, train=300 if quick else 1000, clean=200)
    wrong = d.y != d.y_true

    classifier = ImportanceClassifier(steps=30 if quick else 100).fit(d.X, d.y, d.X_clean, d.y_clean)
    found = classifier.suspects_

    # The same network without weights: on the trusted digits alone, and on all labels as they are given.
    trusted_alone = PlainClassifier().fit(d.X_clean, d.y_clean)
    as_given = PlainClassifier().fit(np.concatenate([d.X, d.X_clean]), np.concatenate([d.y, d.y_clean]))

    figures = {
        "recall": float(found[wrong].mean()),
        "precision": float(wrong[found].mean()),
        "accuracy": classifier.score(d.X_test, d.y_test),
        "accuracy_trusted_alone": trusted_alone.score(d.X_test, d.y_test),
        "accuracy_as_given": as_given.score(d.X_test, d.y_test),
    }
    print(
        f"Of {wrong.sum()} wrong labels among {len(wrong)}, {figures['recall']:.1%} were found; "
        f"{figures['precision']:.1%} of the {found.sum()} suspects are wrong. Test accuracy: "
        f"{figures['accuracy']:.1%} with the weights, {figures['accuracy_trusted_alone']:.1%} from the trusted digits "
        f"alone, {figures['accuracy_as_given']:.1%} with all labels as given."
    )

    weight_histogram(classifier.sample_weight_, wrong, out / "denoising.png")
    worst = np.argsort(-classifier.suspicion_)[:SHOWN]
    titles = [f"given {d.y[i]}\nbelieved {classifier.label_belief_[i]}" for i in worst]
    contact_sheet(
        d.images[worst], titles, out / "denoising_suspects.png", f"The {SHOWN} digits trusted least", wrong[worst]
    )
    return figures


PARSER = argparse.ArgumentParser(description="Wrong labels found by a few right ones.")
PARSER.add_argument("--quick", action="store_true", help="a smaller form that takes seconds")
PARSER.add_argument("--out", type=Path, default=Path(), help="the folder for the pictures")

if __name__ == "__main__":
    main(**vars(PARSER.parse_args()))
