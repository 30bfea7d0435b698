"""Finding wrong labels."""

from bilevax.applications.denoising.estimator import DenoisingClassifier as DenoisingClassifier
from bilevax.applications.denoising.estimator import LabelReview as LabelReview
from bilevax.applications.denoising.estimator import review_probabilities as review_probabilities
from bilevax.applications.denoising.importance import from_agreement as from_agreement
from bilevax.applications.denoising.importance import from_losses as from_losses
from bilevax.applications.denoising.importance import per_sample as per_sample
from bilevax.applications.denoising.importance import weights as weights
from bilevax.applications.denoising.importance_classifier import ImportanceClassifier as ImportanceClassifier
from bilevax.applications.denoising.importance_classifier import PlainClassifier as PlainClassifier
from bilevax.applications.denoising.recipes import approxgrad_solver as approxgrad_solver
from bilevax.applications.denoising.recipes import penalty_solver as penalty_solver
from bilevax.applications.denoising.regressor import DenoisingRegressor as DenoisingRegressor
from bilevax.applications.denoising.tasks import denoising_task as denoising_task
from bilevax.applications.denoising.tasks import meta_weight_task as meta_weight_task
from bilevax.applications.denoising.tasks import meta_weights as meta_weights
from bilevax.applications.denoising.tasks import reweighting_task as reweighting_task
