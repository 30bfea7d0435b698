"""Estimators of scikit-learn, and of other libraries, written and read by skops."""

import warnings
import zipfile
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from bilevax._checks import InputError, listed, short_reason

if TYPE_CHECKING:
    from bilevax.saved.folders import Content

# Beside the estimators of scikit-learn, which skops knows.
TRUSTED = frozenset(
    {
        "sklearn.tree._tree.Tree",
        "sklearn.neighbors._kd_tree.KDTree",
        "sklearn.neighbors._ball_tree.BallTree",
        "sklearn.metrics._dist_metrics.EuclideanDistance64",
        "sklearn.calibration._CalibratedClassifier",
        "sklearn.calibration._SigmoidCalibration",
        "sklearn.ensemble._hist_gradient_boosting.binning._BinMapper",
        "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
        "sklearn.ensemble._hist_gradient_boosting.gradient_boosting._HistGradientBoostingClassifier",
        "sklearn.feature_selection._mutual_info.mutual_info_classif",
        "sklearn.feature_selection._mutual_info.mutual_info_regression",
        "sklearn.feature_selection._univariate_selection.chi2",
        "sklearn.feature_selection._univariate_selection.f_classif",
        "sklearn.feature_selection._univariate_selection.f_regression",
        "sklearn.utils._bunch.Bunch",
        "sklearn.feature_extraction.text.TfidfTransformer",
        "collections.OrderedDict",
        "numpy.dtype",
    }
)


def written_objects(objects: list[Any]) -> bytes:
    """Estimators as skops writes them; nothing where there are none.

    Raises:
        InputError: one of them cannot be written without pickle.
    """
    if not objects:
        return b""
    from skops import io

    try:
        data = io.dumps(objects, compression=zipfile.ZIP_DEFLATED, compresslevel=1)
        names = io.get_untrusted_types(data=data)
    except Exception as error:  # objects raise their own types
        raise InputError(
            f"The model cannot be saved: it holds an object that cannot be written without pickle "
            f"({short_reason(error)}). Use estimators of scikit-learn."
        ) from error
    if local := [name for name in names if "<" in name]:
        raise InputError(
            f"The model cannot be saved: it holds functions without a name of their own ({listed(local)}). Define them "
            "in a module."
        )
    return data


def read_objects(content: "Content", trusted: Collection[str]) -> list[Any]:
    """The estimators that skops wrote.

    Raises:
        InputError: types among them are not trusted; skops is not installed.
    """
    if not content.estimators:
        return []
    from skops import io

    unknown = sorted(set(io.get_untrusted_types(data=content.estimators)) - TRUSTED - set(trusted))
    if unknown:
        raise InputError(
            f"The model holds objects of the types {listed(unknown)}, which are neither of bilevax nor estimators of "
            "scikit-learn, and their code would run. If you trust whoever made the folder, name them: "
            f"bilevax.saved.load_model(path, trusted={unknown!r})."
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of another version of scikit-learn: callers compare versions themselves
        return io.loads(content.estimators, trusted=sorted({*TRUSTED, *trusted}))
