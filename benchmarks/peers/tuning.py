"""Chooses the settings in settings.json: for each work and method the fewest upper iterations to the target, T = 10.

All libraries that compute a method use the same settings, as --check shows that they compute the same. The choice is
made with bilevax, the fastest. Every method has the same grid of rates and as many values of one setting of its own:

    rates of u    the three of UPPER
    rates of v    the three of LOWER, plain descent; for Penalty, whose lower problem has the square of the condition
                  number, those of PENALTYS, by Adam except on the two works where descent is enough
    its own       the three of OWN: Penalty's lam, CG's damping (its steps where a library has no damping), the scale of
                  the Neumann series, the weight of a penalty by values or of an envelope; unrolling and one-step
                  methods have none, and take rates three times as fine

First all pairs of rates are tried at the middle value of its own setting, then the other two values at the best pair.
Among equals the first wins, which has smaller rates; if none reaches the target, the one that ends nearest wins.
"""

import itertools
import json
import math
from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.peers import jax_problems, ours
from benchmarks.peers.competitors import SETTINGS, settings
from benchmarks.peers.ours import Ours
from benchmarks.peers.run import Judge, say
from benchmarks.peers.works import Arrays, Work, leaves

MOVES = 10
STEPS = 5  # of a linear solve
UPPER = {
    "synthetic": (0.1, 0.3, 1.0),
    "poisoning": (0.01, 0.03, 0.1),
    "mlp": (0.03, 0.1, 0.3),
    "mnist": (0.03, 0.1, 0.3),
    "fewshot": (0.003, 0.01, 0.03),
    "transformer": (0.03, 0.1, 0.3),
}
LOWER = {
    "synthetic": (0.03, 0.1, 0.3),
    "poisoning": (0.001, 0.003, 0.01),
    "mlp": (0.01, 0.03, 0.1),
    "mnist": (0.003, 0.01, 0.03),
    "fewshot": (0.01, 0.03, 0.1),
    "transformer": (0.03, 0.1, 0.3),
}
PENALTYS = {  # rates of v
    "synthetic": (0.003, 0.01, 0.03),
    "poisoning": (3e-4, 1e-3, 3e-3),
    "mlp": (3e-4, 1e-3, 3e-3),
    "mnist": (3e-5, 1e-4, 3e-4),
    "fewshot": (0.01, 0.03, 0.1),
}
PENALTY = {  # settings that are not tuned; no multipliers in few-shot learning, where v starts again each time
    "synthetic": {"lower": "sgd", "gamma": 1.0, "nu": 1.0},
    "poisoning": {"lower": "adam", "gamma": 1.0, "nu": 1.0},
    "mlp": {"lower": "adam", "gamma": 1.0, "nu": 1.0},
    "mnist": {"lower": "adam", "gamma": 1.0, "nu": 1.0},
    "fewshot": {"lower": "sgd", "gamma": 1.0, "nu": 0.0},
}
OWN: dict[str, dict[str, tuple[str, tuple[Any, ...]]]] = {
    "penalty": {
        "synthetic": ("lam", (1.0, 3.0, 10.0)),
        "poisoning": ("lam", (3.0, 10.0, 30.0)),
        "mlp": ("lam", (3.0, 10.0, 30.0)),
        "mnist": ("lam", (10.0, 30.0, 100.0)),
        "fewshot": ("lam", (3.0, 10.0, 30.0)),
    },
    "cg": dict.fromkeys(UPPER, ("damping", (0.3, 1.0, 3.0)))
    | {"synthetic": ("damping", (0.1, 0.0, 0.3)), "poisoning": ("damping", (0.03, 0.1, 0.3))},
    # One step solves the synthetic example, and the next divides by zero.
    "plain-cg": dict.fromkeys(UPPER, ("solve_steps", (1, 2, 5))) | {"synthetic": ("solve_steps", (2, 1, 5))},
    "late-cg": dict.fromkeys(UPPER, ("solve_steps", (1, 2, 5))),
    "neumann": {
        "synthetic": ("scale", (0.1, 0.3, 0.5)),
        "poisoning": ("scale", (0.003, 0.01, 0.03)),
        "mlp": ("scale", (0.01, 0.03, 0.1)),
        "mnist": ("scale", (0.003, 0.01, 0.03)),
        "fewshot": ("scale", (0.03, 0.1, 0.3)),
    },
    "value-penalty": dict.fromkeys(UPPER, ("gamma", (3.0, 10.0, 30.0))),
    "moreau": dict.fromkeys(UPPER, ("weight", (3.0, 10.0, 30.0))),
}
CONTINUED = ("value-penalty", "moreau")  # methods whose v must continue: in few-shot learning it starts again
METHODS = ("penalty", "unrolled", "cg", "plain-cg", "late-cg", "neumann", "one-step", "sama", *CONTINUED)
PATIENCE = {"mlp": 30, "mnist": 20, "fewshot": 40, "transformer": 30, "poisoning": 80, "synthetic": 300}


def fixed(work: str, method: str) -> dict[str, Any]:
    """The settings that are not tuned."""
    if method == "penalty":
        return PENALTY[work]
    if method in ("cg", "neumann"):
        return {"solve_steps": 1 if work == "synthetic" and method == "cg" else STEPS}
    return {"radius": 2.0} if method == "moreau" else {}


def methods_of(work: str) -> tuple[str, ...]:
    """The methods that have rows for a work."""
    if work == "transformer":
        return ("unrolled",)
    return tuple(method for method in METHODS if work != "fewshot" or method not in CONTINUED)


def candidates(work: str, method: str) -> Iterable[dict[str, Any]]:
    """All pairs of rates, the middle of its own setting."""
    lower = PENALTYS[work] if method == "penalty" else LOWER[work]
    own = OWN.get(method, {}).get(work)
    for u, v in itertools.product(UPPER[work], lower):
        middle = {} if own is None else {own[0]: own[1][1]}
        yield {"upper_rate": u, "lower_rate": v} | fixed(work, method) | middle


def others(work: str, method: str, best: dict[str, Any]) -> Iterable[dict[str, Any]]:
    """The best pair with the other values of its own setting; if it has none, rates between those of the grid."""
    own = OWN.get(method, {}).get(work)
    if own is not None:
        name, values = own
        yield from (best | {name: value} for value in values if value != best[name])
    else:
        for name, factor in (("upper_rate", 3**0.5), ("lower_rate", 3**-0.5)):
            yield best | {name: float(f"{best[name] * factor:.2g}")}


class Adjustable(Ours):
    """A method whose rates can be changed without recompilation; its other settings are fixed.

    Methods that move several points of v have its rate fixed too.
    """

    def __init__(self, work: str, arrays: Arrays, method: str, tried: dict[str, Any]):
        super().__init__(work, arrays, method, tried)
        lower = optax.adam if tried.get("lower") == "adam" else optax.sgd
        optimizers = [optax.inject_hyperparams(make)(learning_rate=1.0) for make in (optax.adam, lower)]
        fixed = method in CONTINUED
        self.made = ours.solver(method, tried, MOVES, *optimizers[: 1 if fixed else 2])

    def at(self, upper_rate: float, lower_rate: float) -> None:
        """Back to the start, with these rates."""
        self.begin(self.made)
        state = self.carry.state

        def set_rate(opt: Any, rate: float) -> Any:
            return opt._replace(hyperparams=opt.hyperparams | {"learning_rate": jnp.asarray(rate, jnp.float32)})

        state = state._replace(upper_opt=set_rate(state.upper_opt, upper_rate))
        if self.method not in CONTINUED:
            state = state._replace(lower_opt=set_rate(state.lower_opt, lower_rate))
        self.carry = self.carry._replace(state=state)


def score(work: Work, adjustable: Adjustable, judge: Judge, tried: dict[str, Any], most: int) -> tuple[float, float]:
    """(upper iterations to the target, or infinity; distance from it at the end): less is better."""
    value = math.nan
    adjustable.at(tried["upper_rate"], tried["lower_rate"])
    done = 0
    try:
        while done < most:
            adjustable.advance(work.every)
            done += work.every
            value = judge(adjustable.upper())
            if work.done(value):
                return done, 0.0
    except FloatingPointError:
        pass
    off = (work.target - value) if work.rising else (value - work.target)
    return math.inf, off if math.isfinite(off) else math.inf


def best_of(work: Work, arrays: Arrays, judge: Judge, method: str) -> tuple[dict[str, Any], tuple[float, float]]:
    """The best settings of a method, and their score."""
    found: dict[str, Any] = {}
    least, most = (math.inf, math.inf), PATIENCE[work.name]
    adjustables: dict[str, Adjustable] = {}

    def look(tried: dict[str, Any]) -> None:
        nonlocal found, least
        # There is no need to run longer than the best so far.
        limit = most if math.isinf(least[0]) else int(least[0])
        free = ("upper_rate",) if method in CONTINUED else ("upper_rate", "lower_rate")
        rest = json.dumps({name: value for name, value in tried.items() if name not in free})
        if rest not in adjustables:
            adjustables[rest] = Adjustable(work.name, arrays, method, tried)
        came = score(work, adjustables[rest], judge, tried, limit)
        say(f"{work.name} {method} {tried}: {came[0]:g} iterations" + (f", off by {came[1]:.3g}" if came[1] else ""))
        if not found or came < least:
            found, least = tried, came

    for tried in candidates(work.name, method):
        look(tried)
    for tried in others(work.name, method, found):
        look(tried)
    return found, least


def tune(works: Iterable[Work], methods: Iterable[str] = METHODS) -> None:
    """Tune these works and write their settings."""
    for work in works:
        arrays = jax_problems.warmed(work.name, work.arrays(), work.warm)
        judge = jax_problems.judge(work.name, arrays)
        say(f"{work.name}: at the start {judge([np.asarray(x) for x in leaves(arrays, 'u')]):.4g}")
        for method in (method for method in methods if method in methods_of(work.name)):
            best, came = best_of(work, arrays, judge, method)
            say(f"{work.name} {method}: {best}, {came[0]:g} iterations")
            kept = settings()
            kept.setdefault(work.name, {})[method] = best
            SETTINGS.write_text(json.dumps(kept, indent=1) + "\n")
