"""Training-data poisoning, to audit one's own training pipeline."""

from bilevax.applications.poisoning.added_points import swapped as swapped
from bilevax.applications.poisoning.added_points import targeted_task as targeted_task
from bilevax.applications.poisoning.added_points import untargeted_task as untargeted_task
from bilevax.applications.poisoning.added_points import wrongly_labelled as wrongly_labelled
from bilevax.applications.poisoning.audit import audit as audit
from bilevax.applications.poisoning.baselines import WithinBall as WithinBall
from bilevax.applications.poisoning.baselines import influence_solver as influence_solver
from bilevax.applications.poisoning.baselines import points_alone as points_alone
from bilevax.applications.poisoning.baselines import poison_frogs as poison_frogs
from bilevax.applications.poisoning.clean_label import FeatureMap as FeatureMap
from bilevax.applications.poisoning.clean_label import clean_label_task as clean_label_task
from bilevax.applications.poisoning.clean_label import euclidean as euclidean
from bilevax.applications.poisoning.clean_label import well_classified as well_classified
from bilevax.applications.poisoning.points import Points as Points
from bilevax.applications.poisoning.points import distances as distances
from bilevax.applications.poisoning.points import retrained as retrained
from bilevax.applications.poisoning.recipes import approxgrad_solver as approxgrad_solver
from bilevax.applications.poisoning.recipes import clean_label_solver as clean_label_solver
from bilevax.applications.poisoning.recipes import penalty_solver as penalty_solver
from bilevax.applications.poisoning.recipes import reverse_solver as reverse_solver
from bilevax.applications.poisoning.report import Report as Report
