"""Approximate solutions q of H q = b, where only products with H = grad2_vv g are available.

Each is a frozen dataclass called as `solve(second_products, b, start) -> LinearSolution(q, cross, residual)`, where
second_products(q) = (cross, H q) comes from `derivatives.lower`. The caller needs cross = grad2_uv g . q of the
solution; the product that computes the residual |(H + damping) q - b| returns it too.

H is symmetric but need not be positive definite: the solution is always finite and its residual is at most |b|, for any
curvature. If H is singular and H q = b has solutions, `CG`, `Neumann` and `Direct` return the solution of least norm
when they start from zero. If there is no solution, the residual stays large.

Leaves of different types, and of float16 and bfloat16, are computed in a common type of at least float32; q has the
types of b.
"""

from bilevax.linear_solve.base import LinearSolution as LinearSolution
from bilevax.linear_solve.base import LinearSolve as LinearSolve
from bilevax.linear_solve.descent import ByOptimizer as ByOptimizer
from bilevax.linear_solve.descent import Neumann as Neumann
from bilevax.linear_solve.descent import least_squares as least_squares
from bilevax.linear_solve.descent import quadratic as quadratic
from bilevax.linear_solve.direct import Direct as Direct
from bilevax.linear_solve.krylov import CG as CG
from bilevax.linear_solve.krylov import GMRES as GMRES
from bilevax.linear_solve.nystrom import Nystrom as Nystrom
