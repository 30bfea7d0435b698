"""How good (u, v) is, and how good the direction is that a solver takes from there."""

from bilevax.diagnostics.members import Best as Best
from bilevax.diagnostics.members import best_member as best_member
from bilevax.diagnostics.nonsmooth import NonSmooth as NonSmooth
from bilevax.diagnostics.nonsmooth import nonsmooth_stationarity as nonsmooth_stationarity
from bilevax.diagnostics.report import Report as Report
from bilevax.diagnostics.report import report as report
