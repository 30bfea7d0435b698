"""Figure 1: convergence on the two well-conditioned synthetic examples."""

from experiments.catalog import EXPERIMENTS
from experiments.common.settings import Settings
from experiments.synthetic import protocol
from experiments.synthetic.protocol import Plan, run_figure

TITLE = EXPERIMENTS["figure1"].title
# Section 3.1: "only Penalty and ApproxGrad converge to the optimal solution and GD and RMD converge to non-solution
# points"; in (b) "Penalty converges even with T=1 while ApproxGrad requires at least T=10".
PAPER = {
    **{(example, method, T): False for example in (1, 2) for method in ("GD", "RMD") for T in protocol.LOWER_STEPS},
    **{(example, "Penalty", T): True for example in (1, 2) for T in protocol.LOWER_STEPS},
    (1, "ApproxGrad", 10): True,
    (2, "ApproxGrad", 1): False,
    (2, "ApproxGrad", 5): False,
    (2, "ApproxGrad", 10): True,
}


def run(settings: Settings) -> None:
    """Run, compare, write `results.json`, `figure1.png` and `figure1_paper_settings.png`."""
    run_figure(Plan("figure1", TITLE, (1, 2), PAPER), settings)
