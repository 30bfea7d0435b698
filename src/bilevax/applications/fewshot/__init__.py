"""Few-shot learning: a representation learned from many classes, for new classes with a few samples each."""

from bilevax.applications.fewshot.baselines import first_order_maml_solver as first_order_maml_solver
from bilevax.applications.fewshot.baselines import imaml_solver as imaml_solver
from bilevax.applications.fewshot.baselines import maml_solver as maml_solver
from bilevax.applications.fewshot.baselines import maml_task as maml_task
from bilevax.applications.fewshot.baselines import metric_solver as metric_solver
from bilevax.applications.fewshot.baselines import prototypical_task as prototypical_task
from bilevax.applications.fewshot.baselines import relation_task as relation_task
from bilevax.applications.fewshot.episodes import Adapt as Adapt
from bilevax.applications.fewshot.episodes import Episode as Episode
from bilevax.applications.fewshot.episodes import Episodes as Episodes
from bilevax.applications.fewshot.episodes import Evaluation as Evaluation
from bilevax.applications.fewshot.episodes import Scores as Scores
from bilevax.applications.fewshot.episodes import class_means as class_means
from bilevax.applications.fewshot.episodes import evaluate as evaluate
from bilevax.applications.fewshot.episodes import pixel_means as pixel_means
from bilevax.applications.fewshot.estimator import FewShotClassifier as FewShotClassifier
from bilevax.applications.fewshot.estimator import FewShotLearner as FewShotLearner
from bilevax.applications.fewshot.recipes import alternating_solver as alternating_solver
from bilevax.applications.fewshot.recipes import approxgrad_solver as approxgrad_solver
from bilevax.applications.fewshot.recipes import penalty_solver as penalty_solver
from bilevax.applications.fewshot.recipes import reverse_solver as reverse_solver
from bilevax.applications.fewshot.tasks import FewShot as FewShot
from bilevax.applications.fewshot.tasks import features_of as features_of
from bilevax.applications.fewshot.tasks import fewshot_task as fewshot_task
from bilevax.applications.fewshot.tasks import statistics_of as statistics_of
from bilevax.applications.fewshot.tasks import unit as unit
