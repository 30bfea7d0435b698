"""Losses of generalised linear models, with their derivatives in closed form.

The linear predictor `eta` has shape (n, outputs, folds) and the target `y` (n, outputs, 1). Values, slopes and
curvatures are for each sample; values sum over the outputs and have shape (n, folds). Values of likelihoods are half
the unit deviance, so that they are zero where the prediction is perfect (except for classes, where they are the
negative log-likelihood).
"""

from typing import Any

from bilevax._checks import InputError, listed
from bilevax.applications.tuning.glm.losses.base import Loss as Loss
from bilevax.applications.tuning.glm.losses.base import Words as Words
from bilevax.applications.tuning.glm.losses.classes import Logistic as Logistic
from bilevax.applications.tuning.glm.losses.classes import Multinomial as Multinomial
from bilevax.applications.tuning.glm.losses.classes import SquaredHinge as SquaredHinge
from bilevax.applications.tuning.glm.losses.log_link import Gamma as Gamma
from bilevax.applications.tuning.glm.losses.log_link import LogLink as LogLink
from bilevax.applications.tuning.glm.losses.log_link import Poisson as Poisson
from bilevax.applications.tuning.glm.losses.log_link import Tweedie as Tweedie
from bilevax.applications.tuning.glm.losses.real import Huber as Huber
from bilevax.applications.tuning.glm.losses.real import Quantile as Quantile
from bilevax.applications.tuning.glm.losses.real import Squared as Squared
from bilevax.applications.tuning.glm.losses.real import spread as spread

NAMES = ("squared", "logistic", "multinomial", "poisson", "gamma", "tweedie", "huber", "quantile", "squared_hinge")


def loss_of(loss: Any) -> Loss:
    """The loss of a name, or the loss itself.

    Raises:
        InputError: it is neither a `Loss` nor one of the names.
    """
    match loss:
        case Loss():
            return loss
        case "squared":
            return Squared()
        case "logistic":
            return Logistic()
        case "multinomial":
            return Multinomial()
        case "poisson":
            return Poisson()
        case "gamma":
            return Gamma()
        case "tweedie":
            return Tweedie()
        case "huber":
            return Huber()
        case "quantile":
            return Quantile()
        case "squared_hinge":
            return SquaredHinge()
    raise InputError(f"loss is {loss!r}. Pass one of {listed(NAMES)}, or a loss such as Tweedie(1.3) or Quantile(0.9).")
