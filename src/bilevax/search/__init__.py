"""Derivative-free search over u: the baselines of the gradient methods.

Each trial draws u within bounds, trains v from its start down g, and evaluates f. The samplers differ in what they
learn from earlier trials: `Random` learns nothing (Bergstra and Bengio 2012); `TPE` and `GP` are Optuna's.
"""

from bilevax.search.samplers import GP as GP
from bilevax.search.samplers import TPE as TPE
from bilevax.search.samplers import Proposals as Proposals
from bilevax.search.samplers import Random as Random
from bilevax.search.samplers import Sampler as Sampler
from bilevax.search.training import check_trainer as check_trainer
from bilevax.search.training import train_lower as train_lower
from bilevax.search.training import trained as trained
from bilevax.search.trials import search as search
