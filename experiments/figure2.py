"""Figure 2: convergence where the Hessian of the lower-level problem is singular."""

from experiments import synthetic
from experiments.contract import Settings

TITLE = "Figure 2: convergence on examples 3 and 4, with a rank-deficient lower Hessian"
# Section 3.1: "only Penalty converges to the true solution".
PAPER = {
    (example, method, T): method == "Penalty"
    for example in (3, 4)
    for method in ("GD", "RMD", "ApproxGrad", "Penalty")
    for T in synthetic.LOWER_STEPS
}


def run(settings: Settings) -> None:
    """Run, compare, write `results.json`, `figure2.png` and `figure2_paper_settings.png`."""
    synthetic.run_figure(synthetic.Plan("figure2", TITLE, (3, 4), PAPER), settings)
