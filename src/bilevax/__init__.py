"""bilevax: bilevel optimisation in JAX."""

from bilevax._checks import InputError as InputError
from bilevax.loop.callbacks import JsonLines as JsonLines
from bilevax.loop.callbacks import Progress as Progress
from bilevax.loop.callbacks import TensorBoard as TensorBoard
from bilevax.loop.checkpoint import Checkpoint as Checkpoint
from bilevax.loop.checkpoint import SaveError as SaveError
from bilevax.loop.layout import Layout as Layout
from bilevax.loop.result import ProcessLostError as ProcessLostError
from bilevax.loop.result import Result as Result
from bilevax.loop.result import SolveError as SolveError
from bilevax.loop.result import SolveInterrupted as SolveInterrupted
from bilevax.loop.result import SolveTerminated as SolveTerminated
from bilevax.loop.result import Status as Status
from bilevax.loop.solve import solve as solve
from bilevax.loop.sources import Epochs as Epochs
from bilevax.loop.sources import Minibatches as Minibatches
from bilevax.loop.sources import Samples as Samples
from bilevax.loop.sources import Stacked as Stacked
from bilevax.loop.sources import whole as whole
from bilevax.loop.trackers import MLflow as MLflow
from bilevax.loop.trackers import WandB as WandB
from bilevax.problem import Batch as Batch
from bilevax.problem import Equality as Equality
from bilevax.problem import Inequality as Inequality
from bilevax.problem import PerMove as PerMove
from bilevax.problem import Problem as Problem
from bilevax.solvers import BVFIM as BVFIM
from bilevax.solvers import SMNBP as SMNBP
from bilevax.solvers import SPNBO as SPNBO
from bilevax.solvers import Alternating as Alternating
from bilevax.solvers import ForwardMode as ForwardMode
from bilevax.solvers import GradientMatching as GradientMatching
from bilevax.solvers import Implicit as Implicit
from bilevax.solvers import Info as Info
from bilevax.solvers import LearningToReweight as LearningToReweight
from bilevax.solvers import LookAhead as LookAhead
from bilevax.solvers import Penalty as Penalty
from bilevax.solvers import ReverseMode as ReverseMode
from bilevax.solvers import SparseHO as SparseHO
from bilevax.solvers import Vectorized as Vectorized

__version__ = "0.1.0"
