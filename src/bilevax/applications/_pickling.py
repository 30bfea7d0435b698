"""Estimators that can be pickled, whatever their parameters hold."""

import copy
import pickle
from typing import Any, Self

import joblib
import numpy as np

from bilevax._checks import InputError


class Picklable:
    """A mixin: pickle, joblib and copy take the object with all its parameters and its fitted attributes.

    optax's optimizers and most modules of flax and equinox hold local functions, which pickle refuses. Such a value
    is stored by joblib's cloudpickle (`joblib.wrap_non_picklable_objects`), and is itself again once it is loaded.
    """

    def __getstate__(self) -> dict[str, Any]:
        # BaseEstimator's own state where there is one: it records scikit-learn's version.
        state: Any = super().__getstate__()
        return {name: self._portable(name, value) for name, value in state.items()}

    def _portable(self, name: str, value: Any) -> Any:
        if isinstance(value, np.ndarray | int | float | str | None) or _pickle_error(value) is None:
            return value
        wrapped: Any = joblib.wrap_non_picklable_objects(value, keep_wrapper=False)
        error = _pickle_error(wrapped)
        if error is not None:
            raise InputError(
                f"{type(self).__name__} cannot be pickled: its {name} holds what can neither be pickled nor be "
                f"written by cloudpickle ({error}). Replace {name} first: prediction does not need it."
            )
        return wrapped

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # Functions are shared, as copy does by itself: equal solvers and models stay equal, and compiled once.
        new = type(self).__new__(type(self))
        memo[id(self)] = new
        new.__dict__.update({name: copy.deepcopy(value, memo) for name, value in self.__dict__.items()})
        return new


def _pickle_error(value: Any) -> Exception | None:
    try:
        pickle.dumps(value)
    except Exception as error:  # of any type: objects have their own
        return error
    return None
