"""Solvers: one method per file."""

from bilevax.solvers.alternating import Alternating as Alternating
from bilevax.solvers.base import Info as Info
from bilevax.solvers.base import Solver as Solver
from bilevax.solvers.bvfim import BVFIM as BVFIM
from bilevax.solvers.gradient_matching import GradientMatching as GradientMatching
from bilevax.solvers.implicit import Implicit as Implicit
from bilevax.solvers.learning_to_reweight import LearningToReweight as LearningToReweight
from bilevax.solvers.look_ahead import LookAhead as LookAhead
from bilevax.solvers.penalty import Penalty as Penalty
from bilevax.solvers.smnbp import SMNBP as SMNBP
from bilevax.solvers.sparse_ho import SparseHO as SparseHO
from bilevax.solvers.spnbo import SPNBO as SPNBO
from bilevax.solvers.unrolled import ForwardMode as ForwardMode
from bilevax.solvers.unrolled import ReverseMode as ReverseMode
from bilevax.solvers.vectorized import Vectorized as Vectorized
