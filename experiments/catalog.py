"""The experiments by name: what each reproduces, and the module that runs it.

No experiment is imported here, so that `python -m experiments --list` is fast.
"""

from typing import NamedTuple


class Experiment(NamedTuple):
    """A table or figure of the papers.

    Attributes:
        title: what it reproduces.
        module: the module whose `run(settings)` runs it.
    """

    title: str
    module: str


EXPERIMENTS: dict[str, Experiment] = {
    "figure1": Experiment("Figure 1: convergence on examples 1 and 2", "experiments.synthetic.figure1"),
    "figure2": Experiment(
        "Figure 2: convergence on examples 3 and 4, with a rank-deficient lower Hessian",
        "experiments.synthetic.figure2",
    ),
    "figure3": Experiment("Figure 3: clean-label attacks, success against distortion", "experiments.poisoning.figure3"),
    "figure4a": Experiment(
        "Figure 4(a): accuracy against time, denoising MNIST with 25% wrong labels", "experiments.denoising.figure4a"
    ),
    "figure4b": Experiment(
        "Figure 4(b): accuracy on new classes against time, few-shot learning", "experiments.fewshot.figure4b"
    ),
    "figure5a": Experiment(
        "Figure 5(a): accuracy and time of an upper iteration against T, denoising MNIST with 25% wrong labels",
        "experiments.denoising.figure5a",
    ),
    "figure5b": Experiment(
        "Figure 5(b): accuracy and time against T, few-shot learning", "experiments.fewshot.figure5b"
    ),
    "figure5c": Experiment(
        "Figure 5(c): accuracy and time of an upper iteration against T, untargeted attack with 6% points",
        "experiments.poisoning.figure5c",
    ),
    "figure6": Experiment(
        "Figure 6: points of the untargeted and the targeted attack, before and after", "experiments.poisoning.figure6"
    ),
    "figure7": Experiment(
        "Figure 7: lam_0 and the multipliers of Penalty on example 1", "experiments.synthetic.figure7"
    ),
    "denoising-small": Experiment(
        "D.1.1: denoising 5,000 MNIST samples, half the labels wrong, by softmax regression",
        "experiments.denoising.small",
    ),
    "hyper-cleaning": Experiment(
        "Hyper-cleaning of 5,000 MNIST samples, half the labels wrong, by first-order and single-loop methods",
        "experiments.denoising.hyper_cleaning",
    ),
    "table2": Experiment(
        "Table 2: data denoising by importance learning, test accuracy %", "experiments.denoising.table2"
    ),
    "table3": Experiment("Table 3: few-shot learning", "experiments.fewshot.table3"),
    "table4": Experiment("Table 4: seconds for 10,000 upper iterations of one trial", "experiments.synthetic.table4"),
    "table5": Experiment(
        "Table 5: data-augmentation attacks on softmax regression, MNIST", "experiments.poisoning.table5"
    ),
    "table6": Experiment(
        "Table 6: lam, multipliers and gamma of Penalty, untargeted attack with 6% points",
        "experiments.poisoning.table6",
    ),
    "spnbo-table3": Experiment(
        "SPNBO Table 3: data re-weighting under a sparse group lasso", "experiments.spnbo.table3"
    ),
    "spnbo-table4": Experiment(
        "SPNBO Table 4: poisoning of l_p-regularised training (lower is a stronger attack)",
        "experiments.spnbo.table4",
    ),
    "spnbo-table5": Experiment(
        "SPNBO Table 5: few-shot learning with heads under an l_p regulariser", "experiments.spnbo.table5"
    ),
    "wrn": Experiment(
        "D.1.2: denoising CIFAR-10 with 36% wrong labels by a wide residual network", "experiments.denoising.wrn"
    ),
    "review-tables": Experiment(
        "Wrong labels in public tables found: the ranking of label review, against cleanlab and trusted rows alone",
        "experiments.denoising.tables",
    ),
    "review-regression": Experiment(
        "Wrong targets in public tables found: the ranking of DenoisingRegressor, against cleanlab",
        "experiments.denoising.regression",
    ),
    "real-noise": Experiment(
        "Wrong labels of CIFAR-10N found: the ranking of label review, against cleanlab and trusted samples alone",
        "experiments.denoising.real_noise",
    ),
    "wrong-labels": Experiment(
        "Wrong labels found: average precision and ROC area, against cleanlab", "experiments.denoising.wrong_labels"
    ),
    "gpu": Experiment(
        "The full-size cells of the papers, side by side on one accelerator, within --minutes", "experiments.gpu.run"
    ),
    "bolib": Experiment(
        "Bilevel problems of the literature with lower constraints, from their given starts",
        "experiments.bolib.study",
    ),
    "race": Experiment(
        "All stochastic methods against processor seconds: quadratics, logistic regression, hyper-cleaning",
        "experiments.race.race",
    ),
    "tune-tables": Experiment(
        "Many strengths on public tables: TunedGLM, one strength, scikit-learn's CV classes and Optuna",
        "experiments.tuning.tables",
    ),
    "tune-banded": Experiment(
        "A strength for each band of features: TunedGLM beside himalaya", "experiments.tuning.banded"
    ),
    "tune-scalar": Experiment(
        "One strength on public tables: TunedGLM, scikit-learn's CV classes and glum's", "experiments.tuning.scalar"
    ),
    "tune-svm": Experiment(
        "The strengths of a support vector machine: BLOCC, the dual on its box, and grid search",
        "experiments.tuning.svm",
    ),
}
