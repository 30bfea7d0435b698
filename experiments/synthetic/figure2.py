"""Figure 2: convergence where the Hessian of the lower-level problem is singular."""

from experiments.catalog import EXPERIMENTS
from experiments.common.settings import Settings
from experiments.synthetic import protocol
from experiments.synthetic.protocol import Plan, run_figure

TITLE = EXPERIMENTS["figure2"].title
# Section 3.1: "only Penalty converges to the true solution".
PAPER = {
    (example, method, T): method == "Penalty"
    for example in (3, 4)
    for method in ("GD", "RMD", "ApproxGrad", "Penalty")
    for T in protocol.LOWER_STEPS
}


def run(settings: Settings) -> None:
    """Run, compare, write `results.json`, `figure2.png` and `figure2_paper_settings.png`."""
    run_figure(Plan("figure2", TITLE, (3, 4), PAPER), settings)
