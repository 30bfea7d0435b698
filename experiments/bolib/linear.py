"""Problems whose lower level is linear in v, so that its minimiser jumps with u, or is a set at some u."""

import numpy as np

from experiments.bolib.convex import LAMPARIELLO
from experiments.bolib.example import Example, onto_polygon

BARD_84 = "Bard, Journal of the Operational Research Society 35 (1984)"
BARD_91 = "Bard, Journal of Optimization Theory and Applications 68 (1991)"
BIALAS = "Bialas and Karwan, Management Science 30 (1984)"
FRANKE = "Dempe and Franke, in papers of 2011 and 2014 on optimistic bilevel problems, TU Bergakademie Freiberg"
LOHSE = "Dempe and Lohse, Journal of Global Optimization (2011)"

CANDLER_SET = onto_polygon((0, 0), (1.5, 0), (0.75, 0.75), (0, 0.9))


def _bard_84(last):
    return lambda u, v: (
        2 - u[0] - v[0] / 2,
        v[0] - u[0] / 4 - 2,
        u[0] + v[0] / 2 - 8,
        u[0] - 2 * v[0] - last,
        -v[0],
    )


def _hexagon(u, v):
    return (
        10 - u[0] - 2 * v[0],
        u[0] - 2 * v[0] - 6,
        2 * u[0] - v[0] - 21,
        u[0] + 2 * v[0] - 38,
        2 * v[0] - u[0] - 18,
        -v[0],
    )


def _bard_falk(u, v):
    return v[0] - v[1] - 2 * u[0] + 2.5, v[1] - 3 * u[1] + u[0] - 2, -v[0], -v[1]


def _candler(u, v):
    return (
        -v[0] + v[1] + v[2] - 1,
        2 * u[0] - v[0] + 2 * v[1] - v[2] / 2 - 1,
        2 * u[1] + 2 * v[0] - v[1] - v[2] / 2 - 1,
        *(-x for x in v),
    )


def _candler_upper(u, v):
    return -8 * u[0] - 4 * u[1] + 4 * v[0] - 40 * v[1] - 4 * v[2]


def _fraction(u, v):
    return (1 + u[0] + u[1] + 2 * v[0] - v[1] + v[2]) / (6 + 2 * u[0] + v[0] + v[1] - 3 * v[2])


def _product(u, v):
    return u[0] * v[0] + u[1] * v[1]


def _below_the_diagonal(u, v):
    return v[1] - 2 * v[0], v[0] - 2, v[1] - 2, -v[1]


def _unit(u, v):
    return -v[0], v[0] - 1


def _sum(u, v):
    return u[0] + v[0]


LINEAR = {
    "AnandalinghamWhite1990": Example(
        "Anandalingam and White, IEEE Transactions on Automatic Control 35 (1990)",
        lambda u, v: -u[0] - 3 * v[0],
        lambda u, v: 3 * v[0] - u[0],
        _hexagon,
        [1],
        [1],
        -49.0,
        (0, 16),
    ),
    "Bard1984a": Example(BARD_84, _sum, lambda u, v: -5 * u[0] - v[0], _bard_84(4), [1], [1], 28 / 9, (8 / 9, 7.2)),
    "Bard1984b": Example(
        BARD_84, lambda u, v: -5 * u[0] - v[0], lambda u, v: v[0], _bard_84(4), [1], [1], -37.6, (8 / 9, 7.2)
    ),
    "Bard1991Ex1": Example(
        BARD_91,
        lambda u, v: u[0] + v[1],
        lambda u, v: 2 * v[0] + u[0] * v[1],
        lambda u, v: (u[0] - v[0] - v[1] + 4, -v[0], -v[1]),
        [1],
        [1, 1],
        2.0,
        (2, 4),
    ),
    "Bard1991Ex2": Example(
        BARD_91,
        lambda u, v: -u[0] + 10 * v[0] - v[1],
        lambda u, v: -v[0] - v[1],
        lambda u, v: (u[0] + v[0] - 1, u[0] + v[1] - 1, v[0] + v[1] - 1, -v[0], -v[1]),
        [0],
        [0, 0],
        -1.0,
        (0, 1),
    ),
    "BardBook1998": Example(
        "Bard, Practical Bilevel Optimization, Kluwer (1998)",
        lambda u, v: (v[0] - u[0] + 20) ** 2 + (v[1] - u[1] + 20) ** 2,
        lambda u, v: 2 * u[0] + 2 * u[1] - 3 * v[0] - 3 * v[1] - 60,
        lambda u, v: (
            u[0] + u[1] + v[0] - 2 * v[1] - 40,
            2 * v[0] - u[0] + 10,
            2 * v[1] - u[1] + 10,
            v[0] - 20,
            v[1] - 20,
            -v[0] - 10,
            -v[1] - 10,
        ),
        [1, 1],
        [1, 1],
        0.0,
        ([0, 0], [40, 50]),
    ),
    "BenAyedBlair1990a": Example(
        "Ben-Ayed and Blair, Operations Research 38 (1990)",
        lambda u, v: -1.5 * u[0] - 6 * v[0] - v[1],
        lambda u, v: -v[0] - 5 * v[1],
        lambda u, v: (u[0] + 3 * v[0] + v[1] - 5, 2 * u[0] + v[0] + 3 * v[1] - 5, -v[0], -v[1]),
        [1],
        [1, 1],
        -2.5,
        (0, 1),
    ),
    "BialasKarwan1984a": Example(
        BIALAS,
        lambda u, v: -u[0] - v[1],
        lambda u, v: -v[1],
        lambda u, v: (
            u[0] + v[0] + v[1] - 3,
            -u[0] - v[0] + v[1] + 1,
            -u[0] + v[0] + v[1] - 1,
            u[0] - v[0] + v[1] - 1,
            v[1] - 0.5,
            -v[0],
            -v[1],
        ),
        [1],
        [1, 1],
        -2.0,
        (0, 2),
    ),
    "BialasKarwan1984b": Example(
        BIALAS, lambda u, v: -v[0] + 0 * u[0], lambda u, v: v[0], _hexagon, [10], [14], -11.0, (0, 16)
    ),
    "CalveteGale1999P1": Example(
        "Calvete and Gale, European Journal of Operational Research 119 (1999)",
        _candler_upper,
        _fraction,
        _candler,
        [0, 0.5],
        [0, 0.5, 0],
        -29.2,
        ([0, 0], [1.5, 0.9]),
        CANDLER_SET,
    ),
    "CandlerTownsley1982": Example(
        "Candler and Townsley, Computers and Operations Research 9 (1982)",
        _candler_upper,
        lambda u, v: u[0] + 2 * u[1] + v[0] + v[1] + 2 * v[2],
        _candler,
        [1, 1],
        [1, 1, 1],
        -29.2,
        ([0, 0], [1.5, 0.9]),
        CANDLER_SET,
    ),
    "ClarkWesterberg1988": Example(
        "Clark and Westerberg, European Journal of Operational Research (1988)",
        lambda u, v: u[0] - 4 * v[0],
        lambda u, v: v[0],
        lambda u, v: (v[0] - 2 * u[0], 2 * u[0] + 5 * v[0] - 108, 2 * u[0] - 3 * v[0] + 4),
        [20],
        [0],
        -37.0,
        (1, 19),
    ),
    "DempeEtal2012": Example(
        "Dempe, Mordukhovich and Zemkoho, SIAM Journal on Optimization 22 (2012)",
        lambda u, v: u[0] + 0 * v[0],
        lambda u, v: u[0] * v[0],
        _unit,
        [1],
        [1],
        -1.0,
        (-1, 1),
    ),
    "DempeFranke2011Ex41": Example(
        FRANKE,
        lambda u, v: u[0] + v[0] ** 2 + v[1] ** 2,
        _product,
        _below_the_diagonal,
        [1, 1],
        [1, 1],
        5.0,
        ([-1, -1], [1, -1]),
    ),
    "DempeFranke2011Ex42": Example(
        FRANKE,
        lambda u, v: u[0] + (v[0] - 1) ** 2 + v[1] ** 2,
        _product,
        lambda u, v: (v[1] - v[0] - 1, v[0] + v[1] - 3.5, v[1] - 2),
        [1, 1],
        [1, 1],
        2.125,
        ([-1, -1], [1, -1]),
    ),
    "DempeFranke2014Ex38": Example(
        FRANKE,
        lambda u, v: 2 * u[0] + u[1] + 2 * v[0] - v[1],
        _product,
        _below_the_diagonal,
        [1, 1],
        [1, 1],
        -1.0,
        ([-1, -1], [1, -0.75]),
    ),
    "DempeLohse2011Ex31a": Example(
        LOHSE,
        lambda u, v: (u[0] - 0.5) ** 2 + (u[1] - 0.5) ** 2 - 3 * v[0] - 3 * v[1],
        _product,
        lambda u, v: (v[0] + v[1] - 2, v[1] - v[0], -v[0], -v[1]),
        [1, 1],
        [1, 1],
        -5.75,
        printed=-5.5,
    ),
    "GumusFloudas2001Ex3": Example(
        "Gumus and Floudas, Journal of Global Optimization 20 (2001)",
        _candler_upper,
        _fraction,
        lambda u, v: (*_candler(u, v), *(x - 2 for x in v)),
        [0, 0.5],
        [0, 0.5, 0],
        -29.2,
        ([0, 0], [1.5, 0.9]),
        CANDLER_SET,
    ),
    "HaurieSavardWhite1990": Example(
        "Haurie, Savard and White, Operations Research 38 (1990)",
        lambda u, v: u[0] + 5 * v[0],
        lambda u, v: -v[0],
        lambda u, v: (2 * v[0] - 3 * u[0] - 6, 3 * u[0] + 4 * v[0] - 48, 2 * u[0] - 5 * v[0] - 9, 8 - u[0] - v[0]),
        [1],
        [1],
        27.0,
        (2, 12),
    ),
    "HuHuangZhang2009": Example(
        "Hu, Huang and Zhang, in bilevel linear programming by particle swarms (2009)",
        lambda u, v: -4 * u[0] - v[0] - v[1],
        lambda u, v: -u[0] - 3 * v[0],
        lambda u, v: (u[0] + v[0] + v[1] - 25 / 9, u[0] + v[1] - 2, v[0] + v[1] - 8 / 9, -v[0], -v[1]),
        [1],
        [1, 1],
        -79 / 9,
        (0, 2),
        printed=-76 / 9,
    ),
    "LamparielloSagratella2017Ex31": Example(
        LAMPARIELLO,
        lambda u, v: u[0] ** 2 + v[0] ** 2,
        lambda u, v: v[0],
        lambda u, v: (1 - u[0] - v[0],),
        [1],
        [1],
        1.0,
        (1, np.inf),
    ),
    "LamparielloSagratella2017Ex33": Example(
        LAMPARIELLO,
        lambda u, v: u[0] ** 2 + (v[0] + v[1]) ** 2,
        lambda u, v: v[0],
        lambda u, v: (1 - u[0] - v[0] - v[1], -v[0], -v[1]),
        [1],
        [1, 1],
        0.5,
        (0.5, np.inf),
    ),
    "LamparielloSagratella2017Ex35": Example(
        LAMPARIELLO,
        lambda u, v: u[0] ** 2 + v[0] ** 2,
        lambda u, v: -v[0],
        lambda u, v: (2 * u[0] + v[0] - 2, -v[0], v[0] - 1),
        [1],
        [1],
        0.8,
        (-1, 1),
    ),
    "LanWenShihLee2007": Example(
        "Lan, Wen, Shih and Lee, Applied Mathematics and Computation 190 (2007)",
        lambda u, v: 2 * u[0] - 11 * v[0],
        lambda u, v: u[0] + 3 * v[0],
        lambda u, v: (
            u[0] - 2 * v[0] - 4,
            2 * u[0] - v[0] - 24,
            3 * u[0] + 4 * v[0] - 96,
            u[0] + 7 * v[0] - 126,
            -4 * u[0] + 5 * v[0] - 65,
            8 - u[0] - 4 * v[0],
            -v[0],
        ),
        [1],
        [1],
        -936 / 11,
        (0, 192 / 11),
    ),
    "LiuHart1994": Example(
        "Liu and Hart, European Journal of Operational Research 73 (1994)",
        lambda u, v: -u[0] - 3 * v[0],
        lambda u, v: v[0],
        lambda u, v: (v[0] - u[0] - 3, u[0] + 2 * v[0] - 12, 4 * u[0] - v[0] - 12, -v[0]),
        [1],
        [1],
        -16.0,
        (0, 4),
    ),
    "LucchettiEtal1987": Example(
        "Lucchetti, Mignanego and Pieri, Optimization 18 (1987)",
        lambda u, v: (1 - u[0]) / 2 + u[0] * v[0],
        lambda u, v: (u[0] - 1) * v[0],
        _unit,
        [1],
        [1],
        0.0,
        (0, 1),
    ),
    "MorganPatrone2006a": Example(
        "Morgan and Patrone, in Advances in Dynamic Games, Birkhaeuser (2006)",
        lambda u, v: -u[0] - v[0],
        lambda u, v: u[0] * v[0],
        lambda u, v: (-v[0] - 1, v[0] - 1),
        [1],
        [1],
        -1.0,
        (-0.5, 0.5),
    ),
    "TuyEtal1993": Example(
        "Tuy, Migdalas and Varbrand, Journal of Global Optimization 3 (1993); first in Bard and Falk (1982)",
        lambda u, v: -2 * u[0] + u[1] + v[0] / 2,
        lambda u, v: -4 * v[0] + v[1],
        _bard_falk,
        [0, 0],
        [0, 0],
        -3.25,
        ([0, 0], [2, 2]),
        onto_polygon((0.5, 0), (2, 0), (0, 2), (0, 1 / 6)),
    ),
    "VisweswaranEtal1996": Example(
        "Visweswaran et al., in State of the Art in Global Optimization, Kluwer (1996)",
        _sum,
        lambda u, v: -5 * u[0] - v[0],
        _bard_84(2),
        [1],
        [1],
        28 / 9,
        (8 / 9, 6.8),
    ),
    "WangJiaoLi2005": Example(
        "Wang, Jiao and Li, IEEE Transactions on Evolutionary Computation 9 (2005)",
        lambda u, v: -100 * u[0] - 1000 * v[0],
        lambda u, v: -v[0] - v[1],
        lambda u, v: (u[0] + v[0] - v[1] - 1, v[0] + v[1] - 1),
        [1],
        [1, 1],
        -1000.0,
        (0, 1),
    ),
    "Yezza1996Ex31": Example(
        "Yezza, Journal of Optimization Theory and Applications 88 (1996)",
        lambda u, v: -(4 * u[0] - 3) * v[0] + 2 * u[0] + 1,
        lambda u, v: -(1 - 4 * u[0]) * v[0] - 2 * u[0] - 2,
        _unit,
        [1],
        [1],
        1.5,
        (0, 1),
    ),
    "Zlobec2001a": Example(
        "Zlobec, Optimization 50 (2001)",
        lambda u, v: -v[0] / u[0],
        lambda u, v: -v[0] - v[1],
        lambda u, v: (v[0] + u[0] * v[1] - 1, -v[0], -v[1]),
        [1],
        [1, 1],
        -1.0,
        (1e-3, np.inf),
    ),
}
