"""Wrong labels found without trusted ones, and by a few right ones.

Two in five of the training labels are wrong, and it is not known which.

1. Without any trusted label: `DenoisingClassifier` predicts each digit by models that have not seen it, and explains
   the differences from the given labels by a noise matrix. Each label gets a probability to be wrong.
2. 200 other digits have trusted labels. The weights of the training digits are learned so that a network trained with
   them does well on the trusted ones:

    u    one weight for each training digit, w = (tanh u + 1) / 2
    v    the parameters of a small network
    g    the cross-entropy of the training digits by their given labels, weighted by w (and a little l2)
    f    the cross-entropy of the 200 trusted digits

What to look at: the first picture shows the digits whose labels are most probably wrong, with the given label and the
suggested one. An orange frame marks a wrong label, a blue frame a right one. In the second picture the weights end at 0
or at 1, those of wrong labels at 0.

    python examples/denoising.py [--quick] [--out DIR]
"""

import argparse
from pathlib import Path

import numpy as np

from bilevax.applications.denoising import DenoisingClassifier, ImportanceClassifier, PlainClassifier
from bilevax.data import noisy_digits
from bilevax.plots import contact_sheet, weight_histogram

SHOWN = 20


def main(quick: bool, out: Path) -> dict[str, float]:
    """Review the labels, weigh the samples, and draw the suspects and the weights."""
    d = noisy_digits(seed=0, noise=0.4, train=300 if quick else 1000, clean=200)
    wrong = d.y != d.y_true

    review = DenoisingClassifier().fit(d.X, d.y)
    number, low, high = review.expected_wrong_
    worst = np.argsort(-review.probability_wrong_)[:SHOWN]
    titles = [f"given {d.y[i]}\nsuggested {review.suggested_label_[i]}" for i in worst]
    heading = f"The {SHOWN} labels that are most probably wrong"
    contact_sheet(d.images[worst], titles, out / "denoising_suspects.png", heading, wrong[worst])

    weighted = ImportanceClassifier(steps=30 if quick else 100).fit(d.X, d.y, d.X_clean, d.y_clean)
    weight_histogram(weighted.sample_weight_, wrong, out / "denoising.png")

    # The same network without weights: on the trusted digits alone, and on all labels as they are given.
    trusted_alone = PlainClassifier().fit(d.X_clean, d.y_clean)
    as_given = PlainClassifier().fit(np.concatenate([d.X, d.X_clean]), np.concatenate([d.y, d.y_clean]))

    figures = {
        "review_recall": float(review.suspects_[wrong].mean()),
        "review_precision": float(wrong[review.suspects_].mean()),
        "recall": float(weighted.suspects_[wrong].mean()),
        "precision": float(wrong[weighted.suspects_].mean()),
        "accuracy_review": review.score(d.X_test, d.y_test),
        "accuracy": weighted.score(d.X_test, d.y_test),
        "accuracy_trusted_alone": trusted_alone.score(d.X_test, d.y_test),
        "accuracy_as_given": as_given.score(d.X_test, d.y_test),
    }
    print(
        f"{wrong.sum()} of {len(wrong)} labels are wrong. Without trusted labels, about {number:.0f} are expected "
        f"({low:.0f} to {high:.0f}); {figures['review_recall']:.1%} of the wrong ones are found, and "
        f"{figures['review_precision']:.1%} of the suspects are wrong. With weights learned by 200 trusted labels: "
        f"{figures['recall']:.1%} and {figures['precision']:.1%}. Test accuracy: {figures['accuracy_review']:.1%} "
        f"without trusted labels, {figures['accuracy']:.1%} with the weights, {figures['accuracy_trusted_alone']:.1%} "
        f"from the trusted digits alone, {figures['accuracy_as_given']:.1%} with all labels as given."
    )
    return figures


PARSER = argparse.ArgumentParser(description="Wrong labels found without trusted ones, and by a few right ones.")
PARSER.add_argument("--quick", action="store_true", help="a smaller form that takes seconds")
PARSER.add_argument("--out", type=Path, default=Path(), help="the folder for the pictures")

if __name__ == "__main__":
    main(**vars(PARSER.parse_args()))
