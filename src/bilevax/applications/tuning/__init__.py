"""Many hyperparameters, tuned."""

from bilevax.applications.tuning.classifier import Tuned as Tuned
from bilevax.applications.tuning.classifier import classifier_task as classifier_task
from bilevax.applications.tuning.classifier import tune as tune
from bilevax.applications.tuning.classifier import tuning_task as tuning_task
from bilevax.applications.tuning.hyperparameters import Piece as Piece
from bilevax.applications.tuning.lasso import TunedLasso as TunedLasso
from bilevax.applications.tuning.lasso import lasso_task as lasso_task
from bilevax.applications.tuning.logistic import TunedLogisticRegression as TunedLogisticRegression
from bilevax.applications.tuning.logistic import fit_logistic as fit_logistic
from bilevax.applications.tuning.logistic import logistic_task as logistic_task
from bilevax.applications.tuning.path import fit_lasso as fit_lasso
from bilevax.applications.tuning.recipes import implicit_solver as implicit_solver
from bilevax.applications.tuning.recipes import penalty_solver as penalty_solver
