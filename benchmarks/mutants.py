"""Mutation testing: puts one small fault at a time into the core and counts the faults that the quick tests find.

    python -m benchmarks.mutants --sample 120 --seed 0

A mutant takes from some seconds to some minutes. mutmut replaces functions by trampolines, which `jax.jit` and
dataclasses do not accept; cosmic-ray has one test command for all files, where most mutants here are found by the
first of several test files.
"""

import argparse
import ast
import copy
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
SOURCE, TESTS = Path("src/bilevax"), Path("tests/core")
LIMIT = 300  # seconds of processor time for one test file

# The tests of each source file, those first that find a fault fastest; `solvers`, `malformed`, `optimizers` for all.
FILES = {
    "_hoisting.py": "hoisting hypergradients",
    "derivatives.py": "lower_sets hypergradients implicit constraints sparse_ho spnbo",
    "fixed_points.py": "derivatives_on_sets lower_sets implicit",
    "linear_solve/base.py": "linear_solve hypergradients implicit",
    "linear_solve/krylov.py": "linear_solve hypergradients implicit",
    "linear_solve/direct.py": "linear_solve implicit",
    "linear_solve/descent.py": "linear_solve hypergradients",
    "linear_solve/nystrom.py": "cheap_derivatives",
    "loop/stretch.py": "solve programs resume layout",
    "solvers/alternating.py": "",
    "solvers/base.py": "lower_sets solve constraints",
    "solvers/bvfim.py": "bvfim",
    "solvers/gradient_matching.py": "gradient_matching",
    "solvers/implicit.py": "implicit hypergradients lower_sets",
    "solvers/learning_to_reweight.py": "look_ahead",
    "solvers/look_ahead.py": "lower_sets look_ahead",
    "solvers/penalty.py": "hypergradients constraints",
    "solvers/smnbp.py": "smnbp",
    "solvers/sparse_ho.py": "lower_sets sparse_ho",
    "solvers/spnbo.py": "spnbo",
    "solvers/unrolled.py": "lower_sets hypergradients hoisting",
    "solvers/vectorized.py": "solve",
}

OPERATORS = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult}
OPERATORS |= {ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.FloorDiv: ast.Mult}
COMPARISONS = {ast.Lt: (ast.LtE, ast.GtE), ast.LtE: (ast.Lt, ast.Gt), ast.Gt: (ast.GtE, ast.LtE)}
COMPARISONS |= {ast.GtE: (ast.Gt, ast.Lt), ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.Is: (ast.IsNot,)}
COMPARISONS |= {ast.IsNot: (ast.Is,), ast.In: (ast.NotIn,), ast.NotIn: (ast.In,)}
ORDERED = {"sub", "where", "partial", "weights"}  # calls whose last two arguments are exchanged
REDUCIBLE = {"add", "sub", "maximum", "minimum", "where", "abs", "sqrt", "square", "negative", "stop_gradient"}
NEUTRAL = {"strict", "prevent_cse", "policy", "has_aux", "return_shape"}  # arguments that change no value, or crash
ZEROS = "__import__('jax').tree.map(__import__('jax').numpy.zeros_like, {})"


class Mutant(NamedTuple):
    """One change of a file, and the text of the file with it."""

    file: str
    line: int
    before: str
    after: str
    text: str


def changes(node: ast.AST, first: str | None) -> Iterator[tuple[Any, str]]:
    """Pairs of what is replaced and by what text; `first` is the first argument of the function around."""

    def varied(**fields: Any) -> tuple[Any, str]:
        other = copy.copy(node)
        for name, value in fields.items():
            setattr(other, name, value)
        return node, ast.unparse(other)

    match node:
        case ast.BinOp(op=op) | ast.AugAssign(op=op) if type(op) in OPERATORS:
            yield varied(op=OPERATORS[type(op)]())
            if isinstance(node, ast.BinOp):
                yield node, ast.unparse(node.left)
        case ast.UnaryOp(op=ast.USub() | ast.Not() | ast.Invert(), operand=x):
            yield node, ast.unparse(x)
        case ast.Compare(ops=[op]):
            yield from (varied(ops=[other()]) for other in COMPARISONS[type(op)])
        case ast.BoolOp(op=op):
            yield varied(op=ast.Or() if isinstance(op, ast.And) else ast.And())
        case ast.Constant(value=bool() as x):
            yield node, str(not x)
        case ast.Constant(value=int() | float() as x):
            yield node, str(x + 1 if x in (0, 1, 2) else 2 * x)
        case ast.IfExp(body=a, orelse=b):
            yield varied(body=b, orelse=a)
        case ast.If(test=ast.Name() | ast.Call() as x):
            yield x, f"not ({ast.unparse(x)})"
        case ast.Return(value=ast.expr() as x) if not isinstance(x, ast.Constant | ast.Lambda):
            yield x, ZEROS.format(ast.unparse(x))
            if first is not None and isinstance(x, ast.Call):
                yield x, first
        case ast.Expr(value=ast.Call()):
            yield node, "pass"
        case ast.Call(func=function, args=arguments, keywords=keywords):
            name = ast.unparse(function).rpartition(".")[2]
            if name in ORDERED and len(arguments) >= 2:
                yield varied(args=[*arguments[:-2], arguments[-1], arguments[-2]])
            if name in REDUCIBLE:
                yield from ((node, ast.unparse(x)) for x in (arguments[1:] if name == "where" else arguments))
            for i, keyword in enumerate(keywords):
                if keyword.arg not in NEUTRAL:
                    yield varied(keywords=keywords[:i] + keywords[i + 1 :])


def mutants(file: str) -> list[Mutant]:
    """All mutants of a file: of its code, not of its messages, annotations, defaults and decorators."""
    data = (ROOT / SOURCE / file).read_bytes()
    starts, found = [0], []
    for line in data.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))

    def walk(node: ast.AST, first: str | None) -> None:
        match node:
            case ast.Raise() | ast.JoinedStr() | ast.Import() | ast.ImportFrom() | ast.arguments():
                return
            case ast.ClassDef(bases=[ast.Name(id="Protocol")]):
                return
            case ast.ClassDef(body=body):
                children = [(x, None) for x in body if not isinstance(x, ast.AnnAssign)]
            case ast.FunctionDef(body=body, args=ast.arguments(args=names)):
                named = [x.arg for x in names if x.arg != "self"]
                children = [(x, named[0] if named else None) for x in body]
            case ast.AnnAssign(value=value):
                children = [(value, first)] if value else []
            case _:
                children = [(x, first) for x in ast.iter_child_nodes(node)]
                for old, after in changes(node, first):
                    begin, end = (
                        starts[old.lineno - 1] + old.col_offset,
                        starts[old.end_lineno - 1] + old.end_col_offset,
                    )
                    new = after if isinstance(old, ast.stmt) else f"({after})"
                    text = (data[:begin] + new.encode() + data[end:]).decode()
                    found.append(Mutant(file, old.lineno, ast.unparse(old), after, text))
        for child, name in children:
            walk(child, name)

    walk(ast.parse(data), None)
    return found


def sample(count: int, seed: int) -> list[Mutant]:
    """About `count` mutants in random order: from each file in proportion to its lines, at least two."""
    draw, lines = random.Random(seed), {file: len((ROOT / SOURCE / file).read_text().splitlines()) for file in FILES}
    chosen = []
    for file, n in lines.items():
        every = mutants(file)
        chosen += draw.sample(every, min(len(every), max(2, round(count * n / sum(lines.values())))))
    draw.shuffle(chosen)
    return chosen


def killer(mutant: Mutant, tree: Path) -> str | None:
    """The test file that finds the mutant, None where none does; a test that does not end within LIMIT finds it."""
    path = tree / SOURCE / mutant.file
    original = path.read_text()
    path.write_text(mutant.text)
    try:
        tests = [*FILES[mutant.file].split(), "solvers", "malformed", "optimizers"]
        return next((test for test in tests if fails(test, tree)), None)
    finally:
        path.write_text(original)


def fails(test: str, tree: Path) -> bool:
    """Whether a test of the file fails."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", f"{TESTS}/test_{test}.py"],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree / "src"), "PYTHONDONTWRITEBYTECODE": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CPU, (LIMIT, LIMIT)),
    )
    try:
        return process.wait(timeout=4 * LIMIT) != 0
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return process.wait() != 0


def main() -> None:
    """Draw mutants, and print what finds each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, default=120, help="how many mutants (default: 120)")
    parser.add_argument("--seed", type=int, default=0, help="of the sample (default: 0)")
    settings = parser.parse_args()
    found, chosen = 0, sample(settings.sample, settings.seed)
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".git", ".venv", "__pycache__", "site"))
        for mutant in chosen:
            test = killer(mutant, tree)
            found += test is not None
            what = f"{mutant.before!r} -> {mutant.after!r}"
            print(f"{mutant.file}:{mutant.line} {what}: {test or 'NOT FOUND'}", flush=True)
    print(f"{found} of {len(chosen)} found")


if __name__ == "__main__":
    main()
