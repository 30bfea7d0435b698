"""Tests run in float64, with warnings as errors."""

import contextlib
import dataclasses
import gc
import hashlib
import json
import os
import signal
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest
from jax._src.interpreters import mlir
from jaxlib.mlir import ir
from jaxtyping import config, install_import_hook

# Programs run for milliseconds here and are compiled for longer. What takes longest of that is left out: LLVM's passes,
# the emitters of fused loops by MLIR, and the split of a program over threads. On two cores the programs of three
# solvers take 4.3 s of processor time with their tracing, and 10.9 s without these flags. What XLA does before is as
# ever. Read when a backend first starts; processes that tests start inherit it.
FASTER_TO_COMPILE = (
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_use_fusion_emitters=false",
    "--xla_cpu_parallel_codegen_split_count=1",
    "--xla_cpu_enable_concurrency_optimized_scheduler=false",
)
os.environ["XLA_FLAGS"] = " ".join((os.environ.get("XLA_FLAGS", ""), *FASTER_TO_COMPILE)).strip()
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_num_cpu_devices", 8)

# JAX makes an MLIR context for each program that it lowers, in 5 ms, a seventh of the time of a small program. Here one
# serves a test module, except where a program is lowered within another, whose place of insertion the two would share.
# The names are private: without them the tests only take longer.
_make_context = getattr(mlir, "make_ir_context", None)
_contexts = []


def _context():
    try:
        ir.Context.current  # noqa: B018
    except ValueError:  # no context is open
        if not _contexts:
            _contexts.append(_make_context())
        return _contexts[0]
    return _make_context()


if _make_context is not None:
    mlir.make_ir_context = _context

# The annotations of the core are checked as it runs. Left out: entry points that refuse wrong arguments by a sentence
# (`solve`, `Problem`, `report`, `hypergradient`, linear solves), whose tests pass wrong arguments on purpose.
CHECKED = ("bilevax.derivatives", "bilevax.penalties", "bilevax.solvers", "bilevax.schedules", "bilevax.loop.stretch")
assert not any(name.startswith(CHECKED) for name in sys.modules)
install_import_hook(list(CHECKED), "beartype.beartype")

# A shell ignores Ctrl-C for what it starts in the background, and some tests press it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

MAPPINGS = Path("/proc/self/maps")


# Docstring examples that take more than a second. What they show is tested in tests/.
LONG_EXAMPLES = {
    f"bilevax.{name}"
    for name in (
        "applications.denoising.estimator.DenoisingClassifier",
        "applications.denoising.importance.per_sample",
        "applications.denoising.importance_classifier.ImportanceClassifier",
        "applications.denoising.regressor.DenoisingRegressor",
        "applications.denoising.tasks.denoising_task",
        "applications.denoising.tasks.meta_weight_task",
        "applications.denoising.tasks.reweighting_task",
        "applications.fewshot.episodes.Episodes",
        "applications.fewshot.estimator.FewShotLearner",
        "applications.fewshot.tasks.fewshot_task",
        "applications.poisoning.added_points.untargeted_task",
        "applications.poisoning.audit.audit",
        "applications.tuning.classifier.classifier_task",
        "applications.tuning.classifier.tune",
        "applications.tuning.classifier.tuning_task",
        "applications.tuning.glm.faces.TunedGLM",
        "applications.tuning.glm.faces.TunedLogisticRegression",
        "applications.tuning.glm.faces.TunedSVC",
        "applications.tuning.optimizer.optimizer_task",
        "argmin.Argmin",
        "argmin.hypergradient",
        "diagnostics.members.best_member",
        "diagnostics.nonsmooth.nonsmooth_stationarity",
        "linear_solve.nystrom.Nystrom",
        "loop.checkpoint.Checkpoint",
        "loop.layout.Layout",
        "loop.sources.Epochs",
        "nn.adapters.as_representation",
        "nn.augmentation.crop_and_flip",
        "nn.model.export",
        "nn.networks.mlp",
        "nn.representations.Representation",
        "plots.curves.convergence",
        "projections.box_section",
        "recommending.recommend",
        "saved.models.save_model",
        "solvers.bicgaffa.BiCGAFFA",
        "solvers.blocc.BLOCC",
        "solvers.bvfim.BVFIM",
        "solvers.f2sa.F2SA",
        "solvers.learning_to_reweight.LearningToReweight",
        "solvers.pzobo.PZOBO",
        "solvers.saba.SABA",
        "solvers.smnbp.SMNBP",
        "solvers.sparse_ho.SparseHO",
        "solvers.spnbo.SPNBO",
        "solvers.srba.SRBA",
        "solvers.vpbgd.VPBGD",
    )
}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Marks the long examples as slow."""
    for item in items:
        if isinstance(item, pytest.DoctestItem) and item.name in LONG_EXAMPLES:
            item.add_marker("slow")


def pytest_collection_finish():
    """The garbage collector no longer visits what was loaded for the tests, and runs less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


@pytest.fixture(autouse=True, scope="module")
def programs_are_dropped():
    """Compiled programs go before they are too many for one process.

    Each takes mappings of memory, of which a process has 65,530 on Linux; at the end of them the compiler crashes.
    """
    yield
    _contexts.clear()
    if MAPPINGS.is_file() and len(MAPPINGS.read_bytes().splitlines()) > 25_000:
        jax.clear_caches()


_recorders: list[list[str]] = []


def _record(event: str, seconds: float, **more) -> None:
    if event == "/jax/core/compile/backend_compile_duration":
        for recorder in _recorders:
            recorder.append(str(more.get("fun_name", event)))


jax.monitoring.register_event_duration_secs_listener(_record)


@pytest.fixture
def compilations():
    """`with compilations() as seen:` gathers a name for each program that XLA compiles within."""

    @contextlib.contextmanager
    def recorded():
        seen: list[str] = []
        _recorders.append(seen)
        try:
            yield seen
        finally:
            _recorders.remove(seen)

    return recorded


@pytest.fixture
def annotations_unchecked():
    """Annotations are not checked, for arguments that a solver itself must refuse."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


@pytest.fixture
def key():
    return jax.random.key(0)


# --- a server whose manners are the first part of the path ----------------------------------------------------------


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        _, manner, name = self.path.split("/")
        self.server.log.append((manner, name))
        content = self.server.files.get(name, b"")
        if manner == "missing":
            self.send_error(404)
            return
        if manner == "wrong":
            content = content[:-1] + bytes([content[-1] ^ 1])
        self.send_response(200)
        announced = {"boasts": 1000 * len(content), "understates": len(content) - 1}.get(manner, len(content))
        if manner != "silent":
            self.send_header("Content-Length", str(announced))
        self.end_headers()
        if manner in ("breaks", "stalls"):
            content = content[: len(content) // 2]
        if manner == "silent":  # no length announced, and more than is asked for
            content += b"trailing bytes" * 1000
        self.wfile.write(content)
        self.wfile.flush()
        if manner == "stalls":
            self.server.released.wait(10)

    def log_message(self, *arguments):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        pass  # a client that hangs up early


@pytest.fixture
def web(tmp_path, monkeypatch):
    """A local server, an empty cache, and `put`, which has files served in the place of a data set's published ones."""
    from bilevax.data import classes, fetch, images

    server = Server(("127.0.0.1", 0), Handler)
    server.files, server.log, server.released = {}, [], threading.Event()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("BILEVAX_DATA", raising=False)

    def put(constant, contents, *manners):
        module = images if hasattr(images, constant) else classes
        source = getattr(module, constant)
        mirrors = tuple(f"http://127.0.0.1:{server.server_port}/{manner}/" for manner in manners)
        server.files = {file.name: content for file, content in zip(source.files, contents, strict=True)}
        files = tuple(
            fetch.Published(name, len(content), hashlib.md5(content).hexdigest())
            for name, content in server.files.items()
        )
        monkeypatch.setattr(module, constant, dataclasses.replace(source, files=files, mirrors=mirrors))

    yield SimpleNamespace(put=put, server=server, cache=tmp_path / "bilevax", log=server.log)
    server.released.set()
    server.shutdown()
    thread.join()
    server.server_close()


# --- commands that a signal ends -------------------------------------------------------------------------------------

# What differs between two runs of the same command: clocks, and whether it was resumed.
TIMES = {
    "wall_seconds",
    "seconds",
    "compile_seconds",
    "seconds_to_random",
    "resumed",
    "random_seconds",
    "random_seconds_to_its_best",
    "penalty_seconds_to_it",
    "ratio",
    "ratio_to_the_moment_it_was_found",
    "ratio_with_compilation",
}


def _without_times(value):
    if isinstance(value, dict):
        return {name: _without_times(item) for name, item in value.items() if name not in TIMES}
    return [_without_times(item) for item in value] if isinstance(value, list) else value


def _data_files(out):
    """What a command wrote in words and numbers, but for times."""
    found = {path.name: _without_times(json.loads(path.read_text())) for path in out.glob("*.json")}
    return found | {path.name: path.read_text() for path in out.glob("*.csv")}


@pytest.fixture(scope="session")
def ended_early():
    """`ended_early(arguments, visit)`: a command that a signal ends at a visit, counted over all its solves."""
    from typer.testing import CliRunner

    from bilevax import Checkpoint, cli

    def run(arguments, at):
        arguments, count, visit = [str(x) for x in arguments], [0], Checkpoint.visit

        def counted(self, seen):
            visit(self, seen)
            count[0] += 1
            if count[0] == at:
                signal.raise_signal(signal.SIGTERM if at % 2 else signal.SIGUSR1)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Checkpoint, "visit", counted)
            patch.setattr(sys, "argv", ["bilevax", *arguments])
            result = CliRunner().invoke(cli.app, arguments)
        assert result.exit_code == 143, result.output
        assert "Traceback" not in result.output
        assert f"Ended by {'SIGTERM' if at % 2 else 'SIGUSR1'}. What was computed is kept in" in result.stderr
        assert result.stderr.strip().endswith("--resume")
        again = CliRunner().invoke(cli.app, [x for x in arguments if x != "--resume"])
        assert again.exit_code == 2, again.output
        assert "holds an interrupted run" in again.stderr

    return run


@pytest.fixture
def same_after_signals(tmp_path, ended_early):
    """`same_after_signals(arguments, visits)`: what comes out are the bits of a run that no signal ended."""
    from typer.testing import CliRunner

    from bilevax import cli

    def command(arguments):
        result = CliRunner().invoke(cli.app, [str(x) for x in arguments])
        assert result.exit_code == 0, result.output

    def run(arguments, visits):
        whole, out = tmp_path / "whole", tmp_path / "ended"
        command([*arguments, "--out", whole])
        for i, visit in enumerate(visits):
            ended_early([*arguments, "--out", out, *(["--resume"] if i else [])], visit)
            assert not list(out.glob("*.json"))
        command([*arguments, "--out", out, "--resume"])
        assert not (out / "checkpoints").exists()
        assert _data_files(out) == _data_files(whole)
        return out

    return run
