"""Generalised linear models with strengths tuned by cross-validated hypergradients."""

from bilevax.applications.tuning.glm.faces import TunedGLM as TunedGLM
from bilevax.applications.tuning.glm.faces import TunedLasso as TunedLasso
from bilevax.applications.tuning.glm.faces import TunedLogisticRegression as TunedLogisticRegression
from bilevax.applications.tuning.glm.faces import TunedPoissonRegressor as TunedPoissonRegressor
from bilevax.applications.tuning.glm.faces import TunedRidge as TunedRidge
from bilevax.applications.tuning.glm.faces import TunedSVC as TunedSVC
from bilevax.applications.tuning.glm.losses import Gamma as Gamma
from bilevax.applications.tuning.glm.losses import Huber as Huber
from bilevax.applications.tuning.glm.losses import Logistic as Logistic
from bilevax.applications.tuning.glm.losses import Multinomial as Multinomial
from bilevax.applications.tuning.glm.losses import Poisson as Poisson
from bilevax.applications.tuning.glm.losses import Quantile as Quantile
from bilevax.applications.tuning.glm.losses import Squared as Squared
from bilevax.applications.tuning.glm.losses import SquaredHinge as SquaredHinge
from bilevax.applications.tuning.glm.losses import Tweedie as Tweedie
from bilevax.applications.tuning.glm.penalties import L1 as L1
from bilevax.applications.tuning.glm.penalties import L2 as L2
from bilevax.applications.tuning.glm.penalties import ElasticNet as ElasticNet
from bilevax.applications.tuning.glm.penalties import GroupLasso as GroupLasso
