"""Solvers: one method per file."""

from bilevax.solvers.alternating import Alternating as Alternating
from bilevax.solvers.amigo import AmIGO as AmIGO
from bilevax.solvers.base import Info as Info
from bilevax.solvers.base import Solver as Solver
from bilevax.solvers.bome import BOME as BOME
from bilevax.solvers.bvfim import BVFIM as BVFIM
from bilevax.solvers.f2sa import F2SA as F2SA
from bilevax.solvers.gradient_matching import GradientMatching as GradientMatching
from bilevax.solvers.implicit import Implicit as Implicit
from bilevax.solvers.learning_to_reweight import LearningToReweight as LearningToReweight
from bilevax.solvers.look_ahead import LookAhead as LookAhead
from bilevax.solvers.masoba import MASOBA as MASOBA
from bilevax.solvers.meha import MEHA as MEHA
from bilevax.solvers.penalty import Penalty as Penalty
from bilevax.solvers.saba import SABA as SABA
from bilevax.solvers.smnbp import SMNBP as SMNBP
from bilevax.solvers.soba import SOBA as SOBA
from bilevax.solvers.sparse_ho import SparseHO as SparseHO
from bilevax.solvers.spnbo import SPNBO as SPNBO
from bilevax.solvers.srba import SRBA as SRBA
from bilevax.solvers.stocbio import StocBiO as StocBiO
from bilevax.solvers.unrolled import ForwardMode as ForwardMode
from bilevax.solvers.unrolled import ReverseMode as ReverseMode
from bilevax.solvers.vectorized import Vectorized as Vectorized
from bilevax.solvers.vpbgd import VPBGD as VPBGD
