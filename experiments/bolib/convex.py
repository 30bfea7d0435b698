"""Problems whose lower level is convex and not linear in v."""

import jax.numpy as jnp
import numpy as np

from bilevax.projections import box_section
from experiments.bolib.example import Example, onto_polygon
from experiments.bolib.outrata import OUTRATA

BARD = "Bard, Convex two-level optimization, Mathematical Programming 40 (1988)"
CALAMAI = "Calamai and Vicente, ACM Transactions on Mathematical Software 20 (1994)"
COLSON = "Colson, BIPA: bilevel programming with approximation methods, technical report CRT (2002)"
MUU = "Muu and Quy, Vietnam Journal of Mathematics 31 (2003)"
LAMPARIELLO = "Lampariello and Sagratella, Journal of Optimization Theory and Applications 175 (2017)"
FREE = (0.0, np.inf)


def _sum_at_most_40(u):
    """Onto 0 <= u <= (10, 5, 15, 20), sum u <= 40."""
    high = jnp.array([10.0, 5.0, 15.0, 20.0])
    inside = jnp.clip(u, 0.0, high)
    return jnp.where(jnp.sum(inside) <= 40, inside, box_section(u, jnp.ones(4), 40.0, jnp.zeros(4), high))


def _bard_1988(u, v):
    return 3 - 3 * u[0] + v[0], u[0] - v[0] / 2 - 4, u[0] + v[0] - 7


def _calamai(first, second):
    """Constraints of two pairs, with the bounds of their sums."""

    def below(u, v):
        pairs = zip((u[0], u[1]), (v[0], v[1]), (first, second), strict=True)
        return tuple(c for a, b, top in pairs for c in (a - b - 1, 1 - a - b, a + b - top))

    return below


# The transformation of the last problem of Calamai and Vicente: u = M x, v = 10 y for the x and y of the one before.
ROWS = np.array([[331.0, 27, -108, -36], [27, 259, -36, -12]]) / 25


def _calamai_rotated(u, v):
    x = ROWS @ u
    return tuple(
        c
        for i, top in ((0, 1.5), (1, 3.0))
        for c in (x[i] - 10 * v[i] - 1, 1 - x[i] - 10 * v[i], x[i] + 10 * v[i] - top)
    )


def _calamai_rotated_upper(u, v):
    return (
        (
            u[0] * (986 * u[0] + 162 * u[1] - 648 * u[2] - 216 * u[3])
            + u[1] * (162 * u[0] + 554 * u[1] - 216 * u[2] - 72 * u[3])
            + u[2] * (-648 * u[0] - 216 * u[1] + 1514 * u[2] - 162 * u[3])
            + u[3] * (-216 * u[0] - 72 * u[1] - 162 * u[2] + 1946 * u[3])
        )
        / 10
        - (214 * u[0] + 238 * u[1] + 248 * u[2] + 416 * u[3]) / 25
        + 50 * (v[0] ** 2 + v[1] ** 2)
        + 2
    )


def _in_boxes(u, v):
    return 0.5 - v[0], 0.5 - v[1], v[0] - 1.5, v[1] - 1.5


def _nearest(u, v):
    return (u[0] - v[0]) ** 2 + (u[1] - v[1]) ** 2


CONVEX = {
    "AllendeStill2013": Example(
        "Allende and Still, Mathematical Programming 138 (2013)",
        lambda u, v: (u[0] - 1) ** 2 + (u[1] - 1) ** 2 + v[0] ** 2 + v[1] ** 2,
        lambda u, v: v[0] ** 2 + v[1] ** 2 - 2 * u[0] * v[0] - 2 * u[1] * v[1],
        lambda u, v: ((v[0] - 1) ** 2 - 0.25, (v[1] - 1) ** 2 - 0.25),
        [0, 0],
        [0, 0],
        1.0,
        ([0, 0], [2, np.inf]),
    ),
    "Bard1988Ex1": Example(
        BARD,
        lambda u, v: (u[0] - 5) ** 2 + (2 * v[0] + 1) ** 2,
        lambda u, v: (v[0] - 1) ** 2 - 1.5 * u[0] * v[0],
        lambda u, v: (*_bard_1988(u, v), -v[0]),
        [4],
        [0],
        17.0,
        (1, 5),
    ),
    "Bard1988Ex2": Example(
        BARD,
        lambda u, v: -(200 - v[0] - v[2]) * (v[0] + v[2]) - (160 - v[1] - v[3]) * (v[1] + v[3]),
        lambda u, v: (v[0] - 4) ** 2 + (v[1] - 13) ** 2 + (v[2] - 35) ** 2 + (v[3] - 2) ** 2,
        lambda u, v: (
            0.4 * v[0] + 0.7 * v[1] - u[0],
            0.6 * v[0] + 0.3 * v[1] - u[1],
            0.4 * v[2] + 0.7 * v[3] - u[2],
            0.6 * v[2] + 0.3 * v[3] - u[3],
            v[0] - 20,
            v[1] - 20,
            v[2] - 40,
            v[3] - 40,
            *(-x for x in v),
        ),
        [5, 5, 15, 15],
        [0, 0, 0, 0],
        -6600.0,
        ([0, 0, 0, 0], [10, 5, 15, 20]),
        _sum_at_most_40,
    ),
    "CalamaiVicente1994a": Example(
        CALAMAI,
        lambda u, v: (u[0] - 1) ** 2 / 2 + v[0] ** 2 / 2,
        lambda u, v: v[0] ** 2 / 2 - u[0] * v[0],
        lambda u, v: (u[0] - v[0] - 1, 1 - u[0] - v[0], u[0] + v[0] - 1.5),
        [1],
        [1],
        0.0625,
        (-np.inf, 1.25),
        note="with rho = 1.5; for rho = 1 the lower set has no inner point",
    ),
    "CalamaiVicente1994b": Example(
        CALAMAI,
        lambda u, v: sum((x - 1) ** 2 for x in u) / 2 + (v[0] ** 2 + v[1] ** 2) / 2,
        lambda u, v: (v[0] ** 2 + v[1] ** 2) / 2 - u[0] * v[0] - u[1] * v[1],
        _calamai(1.5, 3.0),
        [1, 1, 1, 1],
        [1, 1],
        0.3125,
        ([-np.inf] * 4, [1.25, 2, np.inf, np.inf]),
    ),
    "CalamaiVicente1994c": Example(
        CALAMAI,
        _calamai_rotated_upper,
        lambda u, v: 50 * (v[0] ** 2 + v[1] ** 2) - 10 * (ROWS[0] @ u * v[0] + ROWS[1] @ u * v[1]),
        _calamai_rotated,
        [1, 1, 1, 1],
        [1, 1],
        0.3125,
    ),
    "ClarkWesterberg1990a": Example(
        "Clark and Westerberg, Computers and Chemical Engineering 14 (1990)",
        lambda u, v: (u[0] - 3) ** 2 + (v[0] - 2) ** 2,
        lambda u, v: (v[0] - 5) ** 2,
        lambda u, v: (-2 * u[0] + v[0] - 1, u[0] - 2 * v[0] + 2, u[0] + 2 * v[0] - 14),
        [1],
        [1],
        5.0,
        (0, 6),
    ),
    "Colson2002BIPA5": Example(
        COLSON,
        lambda u, v: (u[0] - v[1]) ** 4 + (v[0] - 1) ** 2 + (v[0] - v[1]) ** 2,
        lambda u, v: 2 * u[0] + jnp.exp(v[0]) + v[0] ** 2 + 4 * v[0] + 2 * v[1] ** 2 - 6 * v[1],
        lambda u, v: (
            6 * u[0] + v[0] ** 2 + jnp.exp(v[1]) - 15,
            5 * u[0] + v[0] ** 4 - v[1] - 25,
            v[0] - 4,
            v[1] - 2,
            -v[0],
            -v[1],
        ),
        [1],
        [1, 1],
        2.75,
        (0, 14 / 6),
    ),
    "DeSilva1978": Example(
        "De Silva, Sensitivity formulas for nonlinear factorable programming, thesis (1978)",
        lambda u, v: (u[0] - 1) ** 2 + (u[1] - 1) ** 2 + v[0] ** 2 + v[1] ** 2 - 2,
        _nearest,
        _in_boxes,
        [0, 0],
        [1, 1],
        -1.0,
    ),
    "Dempe1992b": Example(
        "Dempe, Optimization 25 (1992)",
        lambda u, v: (u[0] - 3.5) ** 2 + (v[0] + 4) ** 2,
        lambda u, v: (v[0] - 3) ** 2,
        lambda u, v: (v[0] ** 2 - u[0],),
        [-1],
        [-1],
        28.25,
        FREE,
        printed=31.25,
    ),
    "FalkLiu1995": Example(
        "Falk and Liu, Mathematical Programming 70 (1995)",
        lambda u, v: (u[0] - 1.5) ** 2 + (u[1] - 1.5) ** 2 + v[0] ** 2 + v[1] ** 2 - 4.5,
        _nearest,
        _in_boxes,
        [0, 0],
        [1, 1],
        -2.25,
        printed=-2.1962,
    ),
    "FloudasEtal2013": Example(
        "Floudas et al., Handbook of test problems in local and global optimization, Springer (1999)",
        lambda u, v: 2 * u[0] + 2 * u[1] - 3 * v[0] - 3 * v[1] - 60,
        lambda u, v: (v[0] - u[0] + 20) ** 2 + (v[1] - u[1] + 20) ** 2,
        lambda u, v: (
            2 * v[0] - u[0] + 10,
            2 * v[1] - u[1] + 10,
            u[0] + u[1] + v[0] - 2 * v[1] - 40,
            -v[0] - 10,
            -v[1] - 10,
            v[0] - 20,
            v[1] - 20,
        ),
        [10, 10],
        [20, 20],
        0.0,
        ([0, 0], [40, 50]),
    ),
    "FloudasZlobec1998": Example(
        "Floudas and Zlobec, in Multilevel Optimization: Algorithms and Applications, Kluwer (1998)",
        lambda u, v: u[0] ** 3 * v[0] + v[1],
        lambda u, v: -v[1],
        lambda u, v: (
            u[0] * v[0] - 10,
            v[0] ** 2 + u[0] * v[1] - 1,
            -1 - v[0],
            v[0] - 1,
            -v[1],
            v[1] - 100,
        ),
        [1],
        [1, 1],
        1.0,
        (0, 1),
    ),
    "HatzEtal2013": Example(
        "Hatz, Leyffer, Schloeder and Bock, Argonne National Laboratory preprint (2013)",
        lambda u, v: -u[0] + 2 * v[0] + v[1],
        lambda u, v: (u[0] - v[0]) ** 2 + v[1] ** 2,
        lambda u, v: (-v[0], -v[1]),
        [1],
        [1, 1],
        0.0,
    ),
    "HendersonQuandt1958": Example(
        "Henderson and Quandt, Microeconomic Theory, McGraw-Hill (1958)",
        lambda u, v: u[0] * (u[0] / 2 + v[0] / 2 - 95),
        lambda u, v: v[0] * (u[0] / 2 + v[0] - 100),
        lambda u, v: (-v[0],),
        [0],
        [0],
        -9800 / 3,
        (0, 200),
    ),
    "HenrionSurowiec2011": Example(
        "Henrion and Surowiec, Applicable Analysis 90 (2011)",
        lambda u, v: u[0] ** 2 + 0 * v[0],
        lambda u, v: v[0] ** 2 / 2 - u[0] * v[0],
        None,
        [1],
        [1],
        0.0,
        note="with c = 0",
    ),
    "LamparielloSagratella2017Ex32": Example(
        LAMPARIELLO,
        lambda u, v: u[0] ** 2 + v[0] ** 2,
        lambda u, v: (u[0] + v[0] - 1) ** 2,
        None,
        [1],
        [1],
        0.5,
    ),
    "MacalHurter1997": Example(
        "Macal and Hurter, Mathematical Social Sciences 34 (1997)",
        lambda u, v: (u[0] - 1) ** 2 + (v[0] - 1) ** 2,
        lambda u, v: v[0] ** 2 / 2 + 500 * v[0] - 50 * u[0] * v[0],
        None,
        [1],
        [1],
        451**2 / 2501,
    ),
    "MuuQuy2003Ex1": Example(
        MUU,
        lambda u, v: u[0] ** 2 - 4 * u[0] + v[0] ** 2 + v[1] ** 2,
        lambda u, v: v[0] ** 2 + v[1] ** 2 / 2 + v[0] * v[1] + (1 - 3 * u[0]) * v[0] + (1 + u[0]) * v[1],
        lambda u, v: (2 * v[0] + v[1] - 2 * u[0] - 1, -v[0], -v[1]),
        [2],
        [0, 0],
        -27 / 13,
        (0, 2),
    ),
    "MuuQuy2003Ex2": Example(
        MUU,
        lambda u, v: v[0] ** 2 + v[2] ** 2 - v[0] * v[2] - 4 * v[1] - 7 * u[0] + 4 * u[1],
        lambda u, v: (
            v[0] ** 2 + v[1] ** 2 / 2 + v[2] ** 2 / 2 + v[0] * v[1] + (1 - 3 * u[0]) * v[0] + (1 + u[1]) * v[1]
        ),
        lambda u, v: (2 * v[0] + v[1] - v[2] + u[0] - 2 * u[1] + 2, *(-x for x in v)),
        [0, 1],
        [1, 1, 1],
        23 / 36,
        ([0, 0], [1, 1]),
        onto_polygon((0, 0), (1, 0), (0, 1)),
        printed=0.6426,
    ),
    **OUTRATA,
    "ShimizuAiyoshi1981Ex2": Example(
        "Shimizu and Aiyoshi, IEEE Transactions on Automatic Control 26 (1981)",
        lambda u, v: (u[0] - 30) ** 2 + (u[1] - 20) ** 2 - 20 * v[0] + 20 * v[1],
        _nearest,
        lambda u, v: (v[0] - 10, v[1] - 10, -v[0], -v[1]),
        [1, 1],
        [1, 1],
        225.0,
        ([0, 5], [20, 15]),
        onto_polygon((0, 15), (20, 5), (10, 15)),
    ),
    "ShimizuEtal1997a": Example(
        "Shimizu, Ishizuka and Bard, Nondifferentiable and Two-Level Mathematical Programming, Kluwer (1997)",
        lambda u, v: (u[0] - 5) ** 2 + (2 * v[0] + 1) ** 2,
        lambda u, v: (v[0] - 1) ** 2 - 1.5 * u[0] * v[0],
        _bard_1988,
        [1],
        [1],
        625 / 37,
        (-5, 5),
        note="no value is printed; on v = 3 u - 3 the upper loss is (u - 5)^2 + (6 u - 5)^2",
    ),
    "SinhaMaloDeb2014TP6": Example(
        "Sinha, Malo and Deb, Evolutionary Computation 22 (2014)",
        lambda u, v: (u[0] - 1) ** 2 + 2 * v[0] - 2 * u[0],
        lambda u, v: (2 * v[0] - 4) ** 2 + (2 * v[1] - 1) ** 2 + u[0] * v[0],
        lambda u, v: (
            4 * u[0] + 5 * v[0] + 4 * v[1] - 12,
            4 * v[1] - 4 * u[0] - 5 * v[0] + 4,
            4 * u[0] - 4 * v[0] + 5 * v[1] - 4,
            4 * v[0] - 4 * u[0] + 5 * v[1] - 4,
            -v[0],
            -v[1],
        ),
        [1],
        [1, 1],
        -1.20988,
        (0, 17 / 9),
    ),
    "Yezza1996Ex41": Example(
        "Yezza, Journal of Optimization Theory and Applications 88 (1996)",
        lambda u, v: (v[0] - 2) ** 2 / 2 + (v[0] - u[0] + 2) ** 2 / 2,
        lambda u, v: v[0] ** 2 / 2 + u[0] - v[0],
        lambda u, v: (-v[0], v[0] - u[0]),
        [-1],
        [-1],
        0.5,
        FREE,
    ),
}
