"""Smooth approximations of non-smooth penalties, with their proximal maps."""

from bilevax.penalties.base import Smoothed as Smoothed
from bilevax.penalties.base import entries as entries
from bilevax.penalties.base import zero_share as zero_share
from bilevax.penalties.group import ByLeaf as ByLeaf
from bilevax.penalties.group import ByRow as ByRow
from bilevax.penalties.group import Given as Given
from bilevax.penalties.group import GroupLasso as GroupLasso
from bilevax.penalties.group import Groups as Groups
from bilevax.penalties.group import SparseGroupLasso as SparseGroupLasso
from bilevax.penalties.group import removed_share as removed_share
from bilevax.penalties.oscar import Oscar as Oscar
from bilevax.penalties.separable import L1 as L1
from bilevax.penalties.separable import ElasticNet as ElasticNet
from bilevax.penalties.separable import Lp as Lp
