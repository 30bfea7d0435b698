"""Problems of Outrata: the point (3, 4) is approached by the equilibrium of a quadratic game in two variables."""

import numpy as np

from experiments.bolib.example import Example

OUTRATA_90 = "Outrata, Zeitschrift fuer Operations Research 34 (1990)"
FREE = (0.0, np.inf)


def _tracking(weight):
    return lambda u, v: ((v[0] - 3) ** 2 + (v[1] - 4) ** 2) / 2 + weight * (u[0] ** 2 + u[1] ** 2) - 12.5


def _wedge(u, v):
    return -0.333 * v[0] + v[1] - 2, v[0] - 0.333 * v[1] - 2, -v[0], -v[1]


def _moving_wedge(u, v):
    return (
        -u[0] + v[1] + v[0] * (u[0] / 10 - 0.333),
        v[0] - v[1] * (u[0] / 10 + 0.333) - 2,
        -v[0],
        -v[1],
    )


def _disc(u, v):
    return -0.333 * v[0] + v[1] + u[0] / 10 - 1, v[0] ** 2 + v[1] ** 2 - u[0] / 10 - 9, -v[0], -v[1]


def _distance(u, v):
    return ((v[0] - 3) ** 2 + (v[1] - 4) ** 2) / 2


def _outrata_93(u, v):
    return v[0] ** 2 * (u[0] / 10 + 0.5) + v[1] ** 2 * (u[0] / 20 + 0.5) - u[0] * v[1] - v[0] * (1.333 * u[0] + 3)


OUTRATA = {
    **{
        f"Outrata1990Ex1{letter}": Example(OUTRATA_90, _tracking(weight), lower, _wedge, start, [3, 3], best)
        for letter, weight, (a, b, c), mix, start, best in (
            ("a", 0.1, (1, -2, 5), "uv", [0, 0], -8.91722),
            ("b", 1.0, (1, -2, 5), "uv", [0, 0], -7.57849),
            ("c", 0.0, (1, 3, 10), "uv", [0, 0], -11.99850),
            ("d", 0.1, (1, 3, 10), "uv", [6, -3], -3.6),
            ("e", 0.1, (1, 3, 10), "mixed", [6, -3], -3.92),
        )
        for lower in (
            (
                lambda u, v, a=a, b=b, c=c: (
                    a * v[0] ** 2 / 2 + b * v[0] * v[1] + c * v[1] ** 2 / 2 - u[0] * v[0] - u[1] * v[1]
                )
            )
            if mix == "uv"
            else (
                lambda u, v, a=a, b=b, c=c: (
                    a * v[0] ** 2 / 2
                    + b * v[0] * v[1]
                    + c * v[1] ** 2 / 2
                    + u[0] * (v[0] - 3 * v[1])
                    - u[1] * (2 * v[0] - 3 * v[1])
                )
            ),
        )
    },
    "Outrata1990Ex2a": Example(
        OUTRATA_90,
        _distance,
        lambda u, v: v[0] ** 2 / 2 + v[1] ** 2 / 2 - (3 + 1.333 * u[0]) * v[0] - u[0] * v[1],
        _wedge,
        [1],
        [1, 1],
        0.5015,
        FREE,
        printed=0.5,
    ),
    "Outrata1990Ex2b": Example(
        OUTRATA_90,
        _distance,
        lambda u, v: (1 + u[0]) * v[0] ** 2 / 2 - (3 + 1.333 * u[0]) * v[0] - u[0] * v[1],
        _wedge,
        [5],
        [0, 0],
        0.5015,
        FREE,
        printed=0.5,
    ),
    "Outrata1990Ex2c": Example(
        OUTRATA_90,
        _distance,
        lambda u, v: (
            (1 + u[0]) * v[0] ** 2 / 2 + (1 + 0.1 * u[0]) * v[1] ** 2 / 2 - (3 + 1.333 * u[0]) * v[0] - u[0] * v[1]
        ),
        _wedge,
        [0],
        [0, 0],
        1.86045,
        FREE,
    ),
    "Outrata1990Ex2d": Example(
        OUTRATA_90,
        _distance,
        lambda u, v: v[0] ** 2 / 2 + v[1] ** 2 / 2 - (3 + 1.333 * u[0]) * v[0] - u[0] * v[1],
        _moving_wedge,
        [0],
        [0, 0],
        0.84851,
        FREE,
        printed=0.92,
    ),
    "Outrata1990Ex2e": Example(
        OUTRATA_90,
        _distance,
        lambda u, v: (1 + u[0]) * v[0] ** 2 / 2 + v[1] ** 2 / 2 - (3 + 1.333 * u[0]) * v[0] - u[0] * v[1],
        _moving_wedge,
        [0],
        [0, 0],
        0.89746,
        FREE,
        printed=0.9,
    ),
    "Outrata1993Ex31": Example(
        "Outrata, Mathematical Programming 60 (1993)",
        _distance,
        _outrata_93,
        lambda u, v: (
            v[1] + v[0] * (u[0] / 10 - 0.333) + u[0] / 10 - 2,
            v[0] - v[1] * (u[0] / 10 + 0.333) + u[0] / 10 - 2,
            -v[0],
            -v[1],
        ),
        [0],
        [0, 0],
        1.56287,
        (0, 20),
        printed=1.56,
    ),
    "Outrata1993Ex32": Example(
        "Outrata, Mathematical Programming 60 (1993)", _distance, _outrata_93, _disc, [0], [0, 0], 3.20769, FREE
    ),
    "Outrata1994Ex31": Example(
        "Outrata, SIAM Journal on Optimization 4 (1994)", _distance, _outrata_93, _disc, [0], [0, 0], 3.20769, (0, 10)
    ),
}
