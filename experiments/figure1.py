"""Figure 1: convergence on the two well-conditioned synthetic examples."""

from experiments import synthetic
from experiments.contract import Settings

TITLE = "Figure 1: convergence on examples 1 and 2"
# Section 3.1: "only Penalty and ApproxGrad converge to the optimal solution and GD and RMD converge to non-solution
# points"; in (b) "Penalty converges even with T=1 while ApproxGrad requires at least T=10".
PAPER = {
    **{(example, method, T): False for example in (1, 2) for method in ("GD", "RMD") for T in synthetic.LOWER_STEPS},
    **{(example, "Penalty", T): True for example in (1, 2) for T in synthetic.LOWER_STEPS},
    (1, "ApproxGrad", 10): True,
    (2, "ApproxGrad", 1): False,
    (2, "ApproxGrad", 5): False,
    (2, "ApproxGrad", 10): True,
}


def run(settings: Settings) -> None:
    """Run, compare, write `results.json`, `figure1.png` and `figure1_paper_settings.png`."""
    synthetic.run_figure(synthetic.Plan("figure1", TITLE, (1, 2), PAPER), settings)
