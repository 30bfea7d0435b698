"""The rows of the tables: what each computes, where it runs, and which of bilevax's methods it is compared with."""

import dataclasses
import fnmatch
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.environments import JAXOPT, OWN, TORCH, Environment

SETTINGS = Path(__file__).with_name("settings.json")
FLOOR, FLOORS = "floor", ("poisoning", "mlp", "mnist", "fewshot")
HERE = "benchmarks.peers."
TOLERANCE = 1e-4  # relative, of directions in float32
BY_DIFFERENCES = 1e-3  # the same of differences of two gradients, which round more
OF_NEAR = 5e-3  # the same of differences of grad_u g at two values of v so near that most digits cancel


@dataclasses.dataclass(frozen=True)
class Competitor:
    """A row.

    Attributes:
        key: as in --rows.
        name: as in the table.
        module: where its `make` is.
        method: selects its settings, and bilevax's row of the same method.
        environment: where it runs.
        requirements: what pip installs there for it.
        options: for that pip.
        beside: method of bilevax's row that its time is divided by, if that is not its own method.
        variant: which of several ways to compute the same.
        tolerance: of --check.
    """

    key: str
    name: str
    module: str
    method: str
    environment: Environment = OWN
    requirements: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    beside: str = ""
    variant: str = ""
    tolerance: float = TOLERANCE

    def settings(self, work: str) -> dict[str, Any]:
        """Its settings for a work."""
        if self.method == FLOOR:
            return {}
        return settings()[work][self.method] | ({"variant": self.variant} if self.variant else {})

    def has(self, work: str) -> bool:
        """Whether it has a row for a work: its method has settings there, or the work a floor."""
        return work in FLOORS if self.method == FLOOR else self.method in settings()[work]


def settings() -> dict[str, dict[str, dict[str, Any]]]:
    """By work and method, as `--tune` left them."""
    return json.loads(SETTINGS.read_text())


def _ours(method: str, name: str) -> Competitor:
    return Competitor(f"bilevax:{method}", f"bilevax, `{name}`", HERE + "ours", method)


def _boat(method: str, name: str, **more: Any) -> Competitor:
    return Competitor(f"boat:{method}", f"BOAT, {name}", HERE + "with_boat", method, TORCH, ("boat-torch",), **more)


def _betty(method: str, name: str, **more: Any) -> Competitor:
    betty = {"requirements": ("betty-ml==0.2.1",), "options": ("--ignore-requires-python",)}
    return Competitor(f"betty:{method}", f"Betty, {name}", HERE + "with_betty", method, TORCH, **betty, **more)


COMPETITORS = (
    _ours("penalty", "Penalty"),
    Competitor(
        "torch:double-backward",
        "PyTorch, double backward",
        HERE + "by_hand",
        "penalty",
        TORCH,
        variant="double backward",
    ),
    Competitor(
        "torch:forward-over-reverse",
        "PyTorch, torch.func",
        HERE + "by_hand",
        "penalty",
        TORCH,
        variant="forward over reverse",
    ),
    Competitor("floor", "floor of Penalty's products", HERE + "ours", FLOOR, beside="penalty"),
    _ours("unrolled", "ReverseMode"),
    Competitor("torchopt:unrolled", "TorchOpt, `MetaSGD`", HERE + "with_torchopt", "unrolled", TORCH, ("torchopt",)),
    Competitor("higher:unrolled", "higher, `innerloop_ctx`", HERE + "with_higher", "unrolled", TORCH, ("higher",)),
    _boat("unrolled", "NGD + RAD"),
    Competitor("jaxopt:unrolled", "JAXopt, unrolled", HERE + "with_jaxopt", "unrolled", JAXOPT),
    _ours("cg", "Implicit(CG)"),
    Competitor("torchopt:cg", "TorchOpt, `custom_root`", HERE + "with_torchopt", "cg", TORCH, ("torchopt",)),
    Competitor("jaxopt:cg", "JAXopt, implicit", HERE + "with_jaxopt", "cg", JAXOPT),
    dataclasses.replace(_boat("cg", "NGD + CG"), method="plain-cg", beside="cg"),
    _betty("late-cg", "cg", beside="cg"),
    _ours("neumann", "Implicit(Neumann)"),
    _betty("neumann", "neumann"),
    _ours("one-step", "Implicit(I)"),
    _betty("one-step", "darts", tolerance=BY_DIFFERENCES),
    _ours("sama", "SAMA"),
    _betty("sama", "sama", tolerance=BY_DIFFERENCES),
    _ours("value-penalty", "VPBGD"),
    _boat("value-penalty", "PGDO", tolerance=OF_NEAR),
    _ours("moreau", "MEHA"),
    _boat("moreau", "MESO", tolerance=OF_NEAR),
)


def reference(method: str) -> Competitor:
    """The side of bilevax in --check; some methods have no row of it, and for six it is what others compute."""
    variants = {"cg": "plain", "neumann": "plain", "one-step": "differences", "sama": "differences"}
    variants |= {"value-penalty": "together", "moreau": "lower first"}
    return dataclasses.replace(_ours(method, method), variant=variants.get(method, ""))


def chosen(patterns: str, competitors: Sequence[Competitor] = COMPETITORS) -> list[Competitor]:
    """The rows whose keys match one of the patterns, which are separated by commas."""
    wanted = [pattern.strip() for pattern in patterns.split(",")]
    return [c for c in competitors if any(fnmatch.fnmatch(c.key, pattern) for pattern in wanted)]
