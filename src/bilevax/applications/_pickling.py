"""Estimators that can be pickled, whatever their parameters hold."""

import copy
import io
import pickle
from typing import Any, Self

import joblib
import numpy as np

from bilevax._checks import InputError


class Picklable:
    """A mixin for objects that pickle, joblib and copy take with all parameters and fitted attributes.

    optax's optimizers and most modules of flax and equinox hold local functions, which pickle refuses. These values
    are stored by joblib's cloudpickle (`joblib.wrap_non_picklable_objects`) and are restored when loaded.
    """

    def __getstate__(self) -> dict[str, Any]:
        state: Any = super().__getstate__()  # BaseEstimator's records scikit-learn's version
        return {name: self._portable(name, value) for name, value in state.items()}

    def _portable(self, name: str, value: Any) -> Any:
        if isinstance(value, np.ndarray | int | float | str | None):
            return value
        found = _Check(self)
        error = found.error(value)
        if error is None:
            return value
        if not found.met:  # cloudpickle would write the estimator again, without end
            wrapped: Any = joblib.wrap_non_picklable_objects(value, keep_wrapper=False)
            error = found.error(wrapped)
            if error is None:
                return wrapped
        raise InputError(
            f"{type(self).__name__} cannot be pickled: its {name} holds an object that neither pickle nor "
            f"cloudpickle can write ({error}). Replace {name} first: prediction does not need it."
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # A copy of each attribute, as copy.deepcopy makes without __getstate__: functions are shared, so the copied
        # solvers and models equal the originals and are compiled once.
        new = type(self).__new__(type(self))
        memo[id(self)] = new
        new.__dict__.update({name: copy.deepcopy(value, memo) for name, value in self.__dict__.items()})
        return new


class _Check:
    """Whether values can be pickled as parts of their owner, to which they may refer.

    scikit-learn's metadata requests hold the estimator that they belong to.

    Attributes:
        met: whether the value that was checked last refers to the owner.
    """

    def __init__(self, owner: Any):
        self.owner, self.met = owner, False

    def error(self, value: Any) -> Exception | None:
        """The exception that pickling a value raises."""
        pickler, self.met = pickle.Pickler(io.BytesIO()), False
        pickler.persistent_id = self._known
        try:
            pickler.dump(value)
        except Exception as error:  # objects raise their own types
            return error
        return None

    def _known(self, value: Any) -> str | None:
        if value is not self.owner:
            return None
        self.met = True
        return "owner"
