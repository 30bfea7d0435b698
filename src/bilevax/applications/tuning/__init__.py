"""Many hyperparameters, tuned."""

from bilevax.applications.tuning.classifier import Tuned as Tuned
from bilevax.applications.tuning.classifier import classifier_task as classifier_task
from bilevax.applications.tuning.classifier import tune as tune
from bilevax.applications.tuning.classifier import tuning_task as tuning_task
from bilevax.applications.tuning.hyperparameters import BRIGHTNESS as BRIGHTNESS
from bilevax.applications.tuning.hyperparameters import CLASS_WEIGHTS as CLASS_WEIGHTS
from bilevax.applications.tuning.hyperparameters import CONTRAST as CONTRAST
from bilevax.applications.tuning.hyperparameters import FEATURE_L2 as FEATURE_L2
from bilevax.applications.tuning.hyperparameters import INPUT_NOISE as INPUT_NOISE
from bilevax.applications.tuning.hyperparameters import LABEL_SMOOTHING as LABEL_SMOOTHING
from bilevax.applications.tuning.hyperparameters import LAYER_L2 as LAYER_L2
from bilevax.applications.tuning.hyperparameters import Hyperparameter as Hyperparameter
from bilevax.applications.tuning.lasso import TunedLasso as TunedLasso
from bilevax.applications.tuning.lasso import lasso_task as lasso_task
from bilevax.applications.tuning.logistic import TunedLogisticRegression as TunedLogisticRegression
from bilevax.applications.tuning.logistic import fit_logistic as fit_logistic
from bilevax.applications.tuning.logistic import logistic_task as logistic_task
from bilevax.applications.tuning.path import fit_lasso as fit_lasso
from bilevax.applications.tuning.recipes import implicit_solver as implicit_solver
from bilevax.applications.tuning.recipes import penalty_solver as penalty_solver
