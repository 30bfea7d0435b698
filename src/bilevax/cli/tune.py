"""`bilevax tune`: hyperparameters by gradient, beside random and Bayesian search."""


def tune() -> None:
    """Tune."""
