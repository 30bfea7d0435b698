"""Seconds per lower move of Penalty on the MNIST network (Mehra and Hamm 2021, appendix E.2), on the CPU.

A move is: the gradient of f on 200 validation samples; the gradient of g on 200 training samples, with dropout; one
reverse pass through the latter along p = gamma grad_v g; an Adam update. It runs inside the library's compiled loop.
The same run also measures, interleaved: the move with `derivatives.finite_difference`; a plain gradient move of g; both
written by hand in PyTorch, in a separate process; and the floor of the machine's arithmetic, from the operations of all
matrix products, counted by hand, and a rate measured on a product of 2048x2048. With --networks it also measures plain
moves of the network written in flax and in equinox, whose convolutions are XLA's own.

    python -m benchmarks.lower_move [--runs 7] [--moves 5] [--threads 2] [--torch-python PATH] [--networks] [--profile]

PyTorch is not a dependency: any Python that has it works (pip install torch). Both wall time and processor time are
reported; the latter changes less when other programs share the machine.
"""

import argparse
import collections
import gzip
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

BATCH, CLASSES, SIDE = 200, 10, 2048
DOUBLE, PLAIN = "double backward", "plain gradient"


class Time(NamedTuple):
    """Seconds per move."""

    wall: float
    cpu: float


class Torch:
    """The process that runs benchmarks/torch_lower_move.py; without PyTorch it has no variants; `notes` says why."""

    def __init__(self, python: str, threads: int):
        self.variants: list[str] = []
        script, pipe = Path(__file__).with_name("torch_lower_move.py"), subprocess.PIPE
        try:
            self.process = subprocess.Popen(
                [python, str(script), str(threads)], stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True
            )
        except OSError as error:
            self.notes = f"{python} cannot be run ({error.strerror})."
            return
        line = self._line()
        if not line:
            self.process.wait()
            self.notes = (
                f"{python} has no PyTorch, or one that does not work. Install it there (pip install torch), or name a "
                "Python that has it by --torch-python; the rest is measured without."
            )
            return
        first = json.loads(line)
        self.variants, self.notes = first["variants"], f"PyTorch {first['torch']}"
        for name, reason in first["failed"].items():
            self.notes += f"; it cannot take {name} ({reason})"

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def run(self, variant: str, moves: int) -> Time:
        """Some moves of a variant."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"variant": variant, "moves": moves}) + "\n")
        self.process.stdin.flush()
        reply = json.loads(self._line())
        return Time(reply["seconds"], reply["cpu"])

    def end(self) -> None:
        """Let the process end."""
        if self.variants:
            self.process.communicate()


def products() -> dict[str, tuple[int, int]]:
    """Operations of each layer's product on a batch, counted by hand, and whether its input has a derivative (0, 1)."""
    return {
        "convolution 1": (2 * BATCH * 24 * 24 * 25 * 64, 0),
        "convolution 2": (2 * BATCH * 8 * 8 * 25 * 64 * 128, 1),
        "dense 1": (2 * BATCH * 2048 * 512, 1),
        "dense 2": (2 * BATCH * 512 * 256, 1),
        "dense 3": (2 * BATCH * 256 * CLASSES, 1),
    }


def operations(plain: bool = False) -> float:
    """Operations of a move's products: two gradients, and the derivative of one of them along p; or one gradient.

    A layer y = x W has a gradient of up to three products: x W, x' dy and dy W'. Each has two factors, whose
    derivatives along p take up to six more: x dW, dx W; x' ddy, dx' dy; ddy W', dy dW'. The first layer's x is data:
    dy W' is not asked for, and dx is zero, which leaves two and two.
    """
    gradient = sum(size * (3 if has else 2) for size, has in products().values())
    along = sum(size * (6 if has else 2) for size, has in products().values())
    return gradient if plain else 2 * gradient + along


def flax_network() -> Any:
    """The MNIST network as a user of flax writes it."""
    import flax.linen as nn

    from bilevax.nn import from_flax

    class Network(nn.Module):
        @nn.compact
        def __call__(self, x: Any, train: bool = False) -> Any:
            x = x[..., None]
            for channels in (64, 128):
                x = nn.relu(nn.Conv(channels, (5, 5), padding="VALID")(x))
                x = nn.Dropout(0.25, deterministic=not train)(nn.max_pool(x, (2, 2), (2, 2)))
            x = x.reshape(len(x), -1)
            for width in (512, 256):
                x = nn.Dropout(0.5, deterministic=not train)(nn.relu(nn.Dense(width)(x)))
            return nn.Dense(CLASSES)(x)

    return from_flax(Network())


def equinox_network() -> Any:
    """The MNIST network as a user of equinox writes it."""
    import equinox as eqx
    import jax

    from bilevax.nn import from_equinox

    class Network(eqx.Module):
        convolutions: list[eqx.nn.Conv2d]
        dense: list[eqx.nn.Linear]
        pool: eqx.nn.MaxPool2d
        thin: eqx.nn.Dropout
        thinner: eqx.nn.Dropout

        def __init__(self, key: Any):
            keys = jax.random.split(key, 5)
            self.convolutions = [eqx.nn.Conv2d(1, 64, 5, key=keys[0]), eqx.nn.Conv2d(64, 128, 5, key=keys[1])]
            widths = ((2048, 512), (512, 256), (256, CLASSES))
            self.dense = [eqx.nn.Linear(*pair, key=k) for pair, k in zip(widths, keys[2:], strict=True)]
            self.pool, self.thin, self.thinner = eqx.nn.MaxPool2d(2, 2), eqx.nn.Dropout(0.25), eqx.nn.Dropout(0.5)

        def __call__(self, x: Any, key: Any = None) -> Any:
            keys = [None] * 4 if key is None else list(jax.random.split(key, 4))
            x = x[None]
            for layer, k in zip(self.convolutions, keys[:2], strict=True):
                x = self.thin(self.pool(jax.nn.relu(layer(x))), key=k)
            x = x.ravel()
            for layer, k in zip(self.dense[:2], keys[2:], strict=True):
                x = self.thinner(jax.nn.relu(layer(x)), key=k)
            return self.dense[2](x)

    return from_equinox(Network)


class Program(NamedTuple):
    """A compiled function of some moves."""

    call: Callable[[], Any]
    moves: int
    text: str
    temporaries: int = 0  # bytes


def program(model: Any, moves: int, curvature: Any = None, *, loop: bool = True) -> Program:
    """Moves of a model in the loops that `solve` compiles, on fixed batches: Penalty's, or plain ones.

    A step of Penalty with T lower moves evaluates the move's direction T + 1 times, the last for u. Without `loop` it
    is one plain move, as a training loop of Python's would compile it.
    """
    import jax
    import jax.numpy as jnp
    import optax

    import bilevax as bx
    from bilevax.nn.training import cross_entropy, weighted_mean
    from bilevax.solvers import base

    def upper_loss(u: Any, v: Any, clean: Any) -> Any:
        return jnp.mean(cross_entropy(model, v, *clean))

    def lower_loss(u: Any, v: Any, noisy: Any, *, key: Any) -> Any:
        return weighted_mean(cross_entropy(model, v, *noisy, key=key), jax.nn.sigmoid(u))

    problem, adam = bx.Problem(upper_loss, lower_loss, random_lower=True), optax.adam(1e-3)
    keys = jax.random.split(jax.random.key(0), 6)
    images = [jax.random.uniform(k, (BATCH, 28, 28)) for k in keys[:2]]
    labels = [jax.random.randint(k, (BATCH,), 0, CLASSES) for k in keys[2:4]]
    batch = bx.Batch((images[0], labels[0]), (images[1], labels[1]))
    u, v = jax.random.normal(keys[4], (BATCH,)), jax.jit(model.init)(keys[5], images[0][:1])

    def penalty(state: Any, batch: Any, keys: Any) -> Any:
        return jax.lax.scan(lambda s, k: solver.step(problem, s, batch, k), state, keys)

    def plain(carry: Any, batch: Any, keys: Any) -> Any:
        descent, (v, opt) = base.Descent(problem, u, adam), carry
        if loop:
            return descent.moves(v, opt, batch, moves, keys[0])
        return descent.move(carry, batch.lower, keys[0])[0]

    if curvature is None:
        function, start = plain, (v, adam.init(v))
    else:
        solver = bx.Penalty(adam, adam, moves - 1, 100.0, lam=1.0, nu=0.0, step_scale=1.0, curvature=curvature)
        function, start = penalty, solver.init(problem, u, v, batch)
    arguments = start, batch, keys[:1]
    compiled = jax.jit(function).lower(*arguments).compile()
    memory: Any = compiled.memory_analysis()
    size = memory.temp_size_in_bytes
    return Program(lambda: jax.block_until_ready(compiled(*arguments)), moves, compiled.as_text() or "", size)


def timed(program: Program) -> Time:
    """Seconds per move of one call."""
    wall, cpu = time.perf_counter(), time.process_time()
    program.call()
    return Time((time.perf_counter() - wall) / program.moves, (time.process_time() - cpu) / program.moves)


def product() -> Program:
    """Large products, whose rate is used as the machine's rate."""
    import jax
    import jax.numpy as jnp

    a = jax.random.normal(jax.random.key(0), (SIDE, SIDE), jnp.float32)
    compiled = jax.jit(lambda a: a @ a).lower(a).compile()
    return Program(lambda: [compiled(a).block_until_ready() for _ in range(5)], 5, "")


def row(name: str, times: list[Time], other: list[Time] | None, floor: Time) -> None:
    """One line of the table; ratios to PyTorch are medians of pairs."""
    wall, cpu = (statistics.median(x) for x in zip(*times, strict=True))
    line = f"{name:<44}{wall:>8.3f}{min(t.wall for t in times):>8.3f}{cpu:>8.3f}"
    if other:
        ratio, cpu_ratio = (
            statistics.median(a[i] / b[i] for a, b in zip(times, other, strict=False)) for i in range(2)
        )
        line += f"{ratio:>9.2f}{cpu_ratio:>7.2f}"
    else:
        line += f"{'-':>9}{'-':>7}"
    print(f"{line}{wall / floor.wall:>9.2f}{cpu / floor.cpu:>7.2f}")


def profile(program: Program) -> None:
    """Where the compiled program spends its time, and how many operations of each kind it has."""
    import jax

    program.call()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, create_perfetto_trace=True):
            program.call()
        (path,) = Path(folder).rglob("perfetto_trace.json.gz")
        with gzip.open(path) as file:
            events = [e for e in json.load(file)["traceEvents"] if "hlo_op" in e.get("args", {})]
    lines = re.findall(r"%([\w.-]+) = (\S+\[[\d,]*\])\S* ([\w-]+)\(.*", program.text)
    shapes = {name: shape for name, shape, _ in lines}
    spent: collections.Counter[str] = collections.Counter()
    for event in events:
        spent[event["name"]] += event["dur"] / 1e3 / program.moves
    kinds: collections.Counter[str] = collections.Counter()
    for name, ms in spent.items():
        kind = re.sub(r"[.\d]+$", "", name)
        kinds["matrix products" if kind in ("dot", "dot_general", "ynn_fusion") else kind] += ms
    whole = sum(kinds.values())
    print("\nThreads' milliseconds per move by kind of operation:")
    for kind, ms in kinds.most_common(15):
        print(f"    {kind:<40}{ms:>9.1f}{ms / whole:>7.0%}")
    print("Of single operations, with the shape of the result:")
    for name, ms in spent.most_common(15):
        print(f"    {name:<32}{shapes.get(name, ''):<28}{ms:>9.1f}")
    counts = collections.Counter(kind for _, _, kind in lines)
    print("Operations in the compiled text: " + ", ".join(f"{kind} {n}" for kind, n in counts.most_common(12)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7, help="times that everything is measured, in turn")
    parser.add_argument("--moves", type=int, default=5, help="moves in a compiled loop, at least 3")
    parser.add_argument("--threads", type=int, default=2, help="cores, for JAX and for PyTorch")
    parser.add_argument("--torch-python", default=sys.executable, help="a Python that has PyTorch")
    parser.add_argument("--networks", action="store_true", help="flax and equinox, too: minutes in the loop")
    parser.add_argument("--profile", action="store_true", help="what the exact move spends its time on")
    arguments = parser.parse_args()
    if arguments.moves < 3 or arguments.runs < 1 or arguments.threads < 1:
        parser.error("--moves must be at least 3, --runs and --threads at least 1.")
    # Before jax is imported: it creates its threads for the cores it may use.
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.threads])
    import jax

    jax.config.update("jax_platforms", "cpu")
    from bilevax import derivatives
    from bilevax.nn import mnist_network

    torch = Torch(arguments.torch_python, arguments.threads)
    moves, exact, difference = arguments.moves, derivatives.exact, derivatives.finite_difference
    ours = {
        "bilevax, exact": program(mnist_network(), moves, exact),
        "bilevax, finite difference": program(mnist_network(), moves, difference),
        "bilevax, plain gradient": program(mnist_network(), moves),
    }
    once: dict[str, Program] = {}
    if arguments.networks:
        networks = {"bilevax": mnist_network(), "flax": flax_network(), "equinox": equinox_network()}
        for name, model in networks.items():
            ours[f"{name}, plain gradient, without a loop"] = program(model, 1, loop=False)
            if name != "bilevax":
                once[f"{name}, plain gradient, in a loop (one run)"] = program(model, 2)
    rate = product()
    for each in (*ours.values(), rate):
        each.call()
    times: dict[str, list[Time]] = collections.defaultdict(list)
    for _ in range(arguments.runs):
        for name, each in ours.items():
            times[name].append(timed(each))
        for name in torch.variants:
            times[f"PyTorch, {name}"].append(torch.run(name, moves))
        times["rate"].append(timed(rate))
    torch.end()
    for name, each in once.items():
        times[name].append(timed(each))

    best = Time(*(2 * SIDE**3 / min(x) for x in zip(*times.pop("rate"), strict=True)))
    print(
        f"{platform.machine()}, {len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} "
        f"cores, jax {jax.__version__}; {torch.notes}"
    )
    print(
        f"{BATCH} + {BATCH} samples, float32; {arguments.runs} interleaved runs of {moves} moves; seconds per move. "
        f"Products of {SIDE}x{SIDE}: {best.wall / 1e9:.0f} GFLOP/s, {best.cpu / 1e9:.0f} per core."
    )
    for plain, title in ((False, "Penalty move"), (True, "Plain gradient move")):
        floor = Time(operations(plain) / best.wall, operations(plain) / best.cpu)
        print(f"\n{title}: {operations(plain) / 1e9:.1f} GFLOP of products, at that rate {floor.wall:.3f} s")
        print(f"{'':<44}{'median':>8}{'least':>8}{'cpu':>8}{'/PyTorch':>9}{'cpu':>7}{'/floor':>9}{'cpu':>7}")
        other = times.get(f"PyTorch, {PLAIN if plain else DOUBLE}")
        for name, each in times.items():
            if (PLAIN in name) == plain:
                row(name, each, other, floor)
    if arguments.profile:
        profile(ours["bilevax, exact"])


if __name__ == "__main__":
    main()
