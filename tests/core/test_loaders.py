"""Loaders of other libraries as the batches of a solve."""

import re
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevax import Batch, InputError, LookAhead, Penalty, Problem, Status, solve
from bilevax.loop.tensors import as_arrays

MEAN = Problem(
    upper_loss=lambda u, v, target: jnp.sum((v - target) ** 2),
    lower_loss=lambda u, v, x: jnp.mean(jnp.sum((v - u - x) ** 2, -1)),
)
X = np.random.default_rng(0).normal(size=(12, 2)).astype(np.float32)


def run(batches, problem=MEAN, u=2, steps=6, **options):
    return solve(
        Penalty(stage_steps=2), problem, jnp.zeros(u), jnp.zeros(2), batches, steps=steps, key=jax.random.key(0),
        **options,
    )  # fmt: skip


def plain(size=4, epochs=2):
    return [Batch(np.ones(2), X[i : i + size]) for _ in range(epochs) for i in range(0, len(X), size)]


def same(a, b):
    np.testing.assert_array_equal(a.u, b.u)
    np.testing.assert_array_equal(a.history.upper_loss, b.history.upper_loss)


def test_a_loader_may_refill_its_arrays():
    """JAX uses aligned memory of NumPy as it is, while the loader is two batches ahead."""
    memory = np.zeros(4 * 2 * 4 + 64, np.uint8)
    start = -memory.ctypes.data % 64
    buffer = memory[start : start + 32].view(np.float32).reshape(4, 2)

    def batches():
        for batch in plain():
            buffer[:] = batch.lower
            yield Batch(batch.upper, buffer)

    same(run(batches()), run(plain()))


@pytest.mark.slow
def test_a_smaller_last_batch():
    """It is one more program where the losses take it, and a sentence where they do not."""
    result = run(plain(size=5, epochs=1), steps=9)
    assert (result.status, result.steps) == (Status.EXHAUSTED, 3)
    weighted = Problem(MEAN.upper_loss, lambda u, v, x: jnp.mean(u * jnp.sum((v - x) ** 2, -1)))
    message = r"a batch 2 with arrays of shapes \(2,\), \(2, 2\), and its first, batch 0, has \(2,\), \(5, 2\). Penalty"
    with pytest.raises(InputError, match=message + ".*cannot take a step with it .*drop_last=True"):
        run(plain(size=5, epochs=1), weighted, u=5)


def test_a_loader_alone_is_refused():
    with pytest.raises(InputError, match=r"batches yields tuple.*which level. Wrap a data loader in a generator"):
        run([(X, X)])


class EagerTensor:
    """What tensors of TensorFlow look like from outside."""

    def __init__(self, values):
        self.values = values

    def numpy(self):
        return self.values


def test_tensors_of_tensorflow(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", types.SimpleNamespace(Tensor=EagerTensor))
    batches = [Batch(EagerTensor(b.upper), {"x": EagerTensor(b.lower)}) for b in plain()]
    problem = Problem(MEAN.upper_loss, lambda u, v, data: MEAN.lower_loss(u, v, data["x"]))
    same(run(batches, problem), run(plain()))
    assert as_arrays("batch", batches[0]).lower["x"] is batches[0].lower["x"].values
    with pytest.raises(InputError, match=r"batch.upper has dtype \|S1, which JAX has no arrays of"):
        run([Batch(EagerTensor(np.array([b"a"])), X)])


def test_tensorflow_and_torch_are_not_imported():
    as_arrays("batch", Batch(X))
    assert "tensorflow" not in sys.modules


def test_pipelines_of_grain():
    grain = pytest.importorskip("grain")
    pipeline = grain.MapDataset.source(X).repeat(2).batch(4)
    batches = (Batch(np.ones(2), x) for x in pipeline.to_iter_dataset())
    same(run(batches), run(plain()))


@pytest.mark.slow
def test_the_page_of_models_runs():
    pytest.importorskip("grain")
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    start = page[page.index("```python\n") + 10 : page.index("```\n\n## ")]
    nnx = re.search(r"^```python\n(from flax import nnx\n.*?)^```", page, flags=re.DOTALL | re.MULTILINE)
    grain = re.search(r"^``` { .python title=\"grain\" }\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE)
    names = {"__name__": "models"}
    for code in (start, nnx.group(1), grain.group(1)):
        exec(compile(code, "models.md", "exec"), names)


def test_loaders_of_pytorch():
    torch = pytest.importorskip("torch")
    from torch.utils.data import DataLoader, TensorDataset

    samples = TensorDataset(torch.from_numpy(X), torch.arange(12))
    loader = DataLoader(samples, batch_size=4)
    problem = Problem(MEAN.upper_loss, lambda u, v, data: MEAN.lower_loss(u, v, data[0]))
    batches = [Batch(torch.ones(2, dtype=torch.float64), data) for _ in range(2) for data in loader]
    same(run(batches, problem), run(plain()))

    class Pairs(torch.utils.data.Dataset):  # PyTorch collates a Batch as any NamedTuple
        def __len__(self):
            return len(X)

        def __getitem__(self, i):
            return Batch(X[i], X[i])

    collated = next(iter(DataLoader(Pairs(), batch_size=4)))
    np.testing.assert_array_equal(as_arrays("batch", collated).lower, X[:4])
    # a fixed batch, too
    fixed = Batch(torch.ones(2), torch.from_numpy(X))
    same(run(fixed), run(Batch(np.ones(2), X)))


def test_tensors_are_read_without_a_copy():
    torch = pytest.importorskip("torch")
    tensors = {
        "floats": torch.ones(3, 2),
        "half": torch.ones(3, dtype=torch.float16),
        "bfloat": torch.tensor([1.5, 2.5], dtype=torch.bfloat16),
        "integers": torch.arange(4),
        "truth": torch.tensor([True, False]),
        "scalar": torch.tensor(2.0),
        "none": torch.empty(0, 3),
        "turned": torch.arange(6).reshape(2, 3).T,
        "every other": torch.arange(6)[::2],
        "spread": torch.ones(2).expand(3, 2),
        "weights": torch.nn.Parameter(torch.ones(2)),
    }
    arrays = as_arrays("batch", tensors)
    for name, x in tensors.items():
        np.testing.assert_array_equal(arrays[name].astype(float), x.detach().double().numpy(), name)
        assert arrays[name].ctypes.data == x.data_ptr() or not x.numel()
        assert str(x.dtype).removeprefix("torch.") == str(arrays[name].dtype)


def test_tensors_that_are_refused():
    torch = pytest.importorskip("torch")
    for x, sentence in (
        (torch.eye(2).to_sparse(), r"batch.upper is a tensor of torch.float32 and layout torch.sparse_coo.*to_dense"),
        (torch.ones(2, device="meta"), "batch.upper is a tensor on the device meta, which has no values"),
    ):
        with pytest.raises(InputError, match=sentence):
            run([Batch(x, X)])
    with jax.enable_x64(False), pytest.raises(InputError, match=r"batch.lower holds 2199023255552, .* fit int32"):
        run([Batch(np.ones(2), torch.tensor([2**41]))])


def test_tensors_on_another_device_are_refused(monkeypatch):
    torch = pytest.importorskip("torch")

    class OnGpu(torch.Tensor):
        device = torch.device("cuda:0")

    with pytest.raises(InputError, match=r"batch.upper is a tensor on cuda:0. Leave the loader's tensors on the CPU"):
        run([Batch(torch.ones(2).as_subclass(OnGpu), X)])


def test_an_endless_loader_resumes_where_it_was(tmp_path):
    """The batches before the save are drawn again and skipped: the loader must start as it did."""
    torch = pytest.importorskip("torch")
    from torch.utils.data import DataLoader

    from bilevax import Checkpoint

    def batches():
        loader = DataLoader(torch.from_numpy(X), 4, shuffle=True, generator=torch.Generator().manual_seed(0))
        while True:
            for x in loader:
                yield Batch(np.ones(2), x)

    save = Checkpoint(tmp_path)
    run(batches(), steps=4, every=2, callbacks=[save])
    same(run(batches(), steps=10, every=2, callbacks=[save], resume=save), run(batches(), steps=10, every=2))


def test_a_solver_with_moves_ahead_takes_a_loader():
    torch = pytest.importorskip("torch")
    loader = torch.utils.data.DataLoader(torch.from_numpy(X), 4)
    result = solve(
        LookAhead(rate=0.1), MEAN, jnp.zeros(2), jnp.zeros(2), (Batch(np.ones(2), x) for x in loader), steps=3,
        key=jax.random.key(0),
    )  # fmt: skip
    assert np.isfinite(result.history.upper_loss).all()
