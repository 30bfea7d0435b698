"""PyTorch modules through `from_torch`, against PyTorch itself."""

import copy
import importlib.util
import pickle
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
if importlib.util.find_spec("torchax") is None:
    pytest.skip("torchax is not installed", allow_module_level=True)
from torch import nn  # noqa: E402

from bilevax import InputError  # noqa: E402
from bilevax.applications.tuning import LAYER_L2, tune  # noqa: E402
from bilevax.nn import (  # noqa: E402
    Settled,
    Training,
    as_model,
    export,
    freeze,
    from_torch,
    logits,
    probabilities,
    settled,
    train,
)
from bilevax.nn.pytorch import _torchax  # noqa: E402

N, CLASSES = 6, 3


class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.first, self.second = (nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2))
        self.norm1, self.norm2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)

    def forward(self, x):
        return torch.tanh(x + self.norm2(self.second(torch.tanh(self.norm1(self.first(x))))))


class Encoder(nn.Module):
    def __init__(self, dropout=0.0):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 12, dropout, activation="gelu", batch_first=True)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x):
        return self.head(self.layer(x).mean(1))


class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.lstm, self.head = nn.Embedding(11, 5), nn.LSTM(5, 7, batch_first=True), nn.Linear(7, CLASSES)

    def forward(self, x):
        return self.head(self.lstm(self.words(x))[0][:, -1])


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.into, self.back, self.head = (
            nn.Linear(4, 4, bias=False),
            nn.Linear(4, 4, bias=False),
            nn.Linear(4, CLASSES),
        )
        self.back.weight = self.into.weight

    def forward(self, x):
        return self.head(torch.tanh(self.back(torch.tanh(self.into(x)))))


def lenet():
    convolutions = (nn.Conv2d(1, 3, 3), nn.Tanh(), nn.MaxPool2d(2), nn.Conv2d(3, 4, 3), nn.GELU(), nn.AvgPool2d(2))
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, CLASSES))


def resnet():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2), Block(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, CLASSES)
    )


def mlp():
    return nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.SiLU(), nn.Linear(8, CLASSES))


def normal(*shape):
    return np.random.default_rng(0).normal(size=(N, *shape))


ZOO = {
    "mlp": (mlp, lambda: normal(4)),
    "tied": (Tied, lambda: normal(4)),
    "lenet": (lenet, lambda: normal(1, 14, 14)),
    "resnet": (resnet, lambda: normal(2, 8, 8)),
    "encoder": (Encoder, lambda: normal(5, 8)),
    "reader": (Reader, lambda: np.random.default_rng(0).integers(0, 11, (N, 4))),
}
QUICK = {"mlp", "tied"}
CASES = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in ZOO]


def made(name):
    torch.manual_seed(0)
    make, samples = ZOO[name]
    module = make().double()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):  # statistics of a module that was trained
            part.running_mean.uniform_(-0.2, 0.2)
            part.running_var.uniform_(0.5, 2.0)
    return module, samples()


def native(module, x, training, direction):
    """The loss, its gradient and its Hessian times a direction by PyTorch alone."""
    module = copy.deepcopy(module).train(training)
    params = dict(module.named_parameters())
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        out = module(torch.from_numpy(x))
        loss = (out**2).sum() + out.sum()
        slopes = torch.autograd.grad(loss, list(params.values()), create_graph=True)
        along = sum((g * torch.from_numpy(np.array(direction[k]))).sum() for k, g in zip(params, slopes, strict=True))
        curved = torch.autograd.grad(along, list(params.values()), materialize_grads=True)
    as_arrays = lambda xs: {k: x.detach().numpy() for k, x in zip(params, xs, strict=True)}  # noqa: E731
    return loss.item(), as_arrays(slopes), as_arrays(curved)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", CASES)
def test_values_and_derivatives_are_pytorchs(name, training):
    module, x = made(name)
    model, key = from_torch(module, CLASSES), jax.random.key(0)
    params = model.init(key, x)
    rng = np.random.default_rng(1)
    direction = {k: jnp.asarray(rng.normal(size=p.shape)) for k, p in params.items()}

    def loss(params):
        out = logits(model, params, x, key) if training else logits(model, Settled(params, model.given().statistics), x)
        return jnp.sum(out**2) + jnp.sum(out)

    @jax.jit
    def ours(params):
        forward = jax.jvp(jax.grad(loss), (params,), (direction,))
        reverse = jax.grad(lambda p: sum(jnp.vdot(a, direction[k]) for k, a in jax.grad(loss)(p).items()))(params)
        return loss(params), *forward, reverse

    value, slope, forward, reverse = ours(params)
    expected, slopes, curved = native(module, x, training, direction)
    np.testing.assert_allclose(value, expected, rtol=1e-8)
    for k in params:
        np.testing.assert_allclose(slope[k], slopes[k], rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(forward[k], curved[k], rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(reverse[k], curved[k], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", CASES)
def test_vmap_over_parameters_is_a_loop(name):
    module, x = made(name)
    model, key = from_torch(module), jax.random.key(0)
    params = model.init(key, x)
    several = jax.tree.map(lambda p: jnp.stack([p, 0.5 * p]), params)
    both = jax.jit(jax.vmap(lambda p: logits(model, p, x, key)))(several)
    for i in range(2):
        one = logits(model, jax.tree.map(lambda p, i=i: p[i], several), x, key)
        np.testing.assert_allclose(both[i], one, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", list(ZOO))
@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_exported_weights_are_exact(name, kind):
    module = made(name)[0].to(kind)
    model = from_torch(module)
    exported = export(model, model.given())
    assert exported is not module
    for (k, a), (other, b) in zip(module.state_dict().items(), exported.state_dict().items(), strict=True):
        assert k == other
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
    changed = export(model, jax.tree.map(lambda x: 2 * x, model.given()))
    learned = {k for k, _ in changed.named_parameters()} | {k for k, _ in changed.named_buffers() if "running" in k}
    for k, a in changed.state_dict().items():
        if k in learned:
            assert torch.equal(a, 2 * module.state_dict()[k])
    assert torch.equal(next(module.parameters()), next(exported.parameters()))


def dropped():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 30), nn.Dropout(0.5), nn.ReLU(), nn.Dropout(0.5), nn.Linear(30, CLASSES))


def test_dropout_follows_the_key(key):
    model, x = from_torch(dropped()), normal(4)
    params = model.init(key, x)
    run = jax.jit(lambda key: logits(model, params, x, key))
    first, again, other = run(key), run(key), run(jax.random.key(1))
    np.testing.assert_array_equal(first, again)
    assert float(jnp.abs(first - other).max()) > 1e-3
    used = logits(model, params, x)
    np.testing.assert_allclose(
        used, dropped().eval()(torch.from_numpy(x).float()).detach().numpy(), rtol=1e-5, atol=1e-6
    )
    assert used.dtype == jnp.float32


def test_the_module_is_left_as_it_was(key):
    module = dropped().train()
    module[1].eval()
    before = copy.deepcopy(module.state_dict())
    model = from_torch(module)
    logits(model, model.init(key, normal(4)), normal(4), key)
    assert [part.training for part in module.modules()] == [True, True, False, True, True, True]
    assert all(torch.equal(a, before[k]) for k, a in module.state_dict().items())
    assert all(type(p) is nn.Parameter for p in module.parameters())


def normed():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, CLASSES)).double()


def test_statistics_are_those_of_the_whole_sample(key):
    module, x = normed(), np.random.default_rng(0).normal(size=(600, 4))
    model = from_torch(module)
    v = settled(model, model.init(key, x), x, key=key, batch_size=100)
    hidden = module[0](torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(v.statistics["1"].mean, hidden.mean(0), atol=1e-12)
    np.testing.assert_allclose(v.statistics["1"].variance, hidden.var(0), atol=1e-12)
    exported = export(model, v).eval()
    np.testing.assert_allclose(exported(torch.from_numpy(x)).detach().numpy(), logits(model, v, x), atol=1e-10)


def test_training_and_predictions_by_batch_normalisation(key):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 4))
    y = np.where(x[:, 0] > 0, 1 + (x[:, 1] > 0), 0)
    model = as_model(normed(), CLASSES)
    v = train(model, Training(steps=150, batch_size=50), x, y, np.ones(300), key)
    assert isinstance(v, Settled)
    assert (probabilities(model, v, x).argmax(1) == y).mean() > 0.9
    # One at a time and all together are the same, as a batch's own statistics would not be.
    np.testing.assert_allclose(probabilities(model, v, x[:1]), probabilities(model, v, x)[:1], atol=1e-8)
    with pytest.raises(InputError, match="probabilities: the model has batch normalisation"):
        probabilities(model, v.params, x)
    with pytest.raises(InputError, match="export: the model has batch normalisation"):
        export(model, v.params)


def test_frozen_layers_stay(key):
    module, x = normed(), normal(4)
    model = freeze(from_torch(module), ["0", "1"])
    params = model.init(key, x)
    assert sorted(params) == ["4.bias", "4.weight"]
    # A frozen layer of batch normalisation keeps its statistics, so batches do not matter.
    np.testing.assert_allclose(logits(model, params, x)[:1], logits(model, params, x[:1]), atol=1e-10)
    exported = export(model, jax.tree.map(jnp.zeros_like, params))
    assert torch.equal(exported[0].weight, module[0].weight)
    assert not exported[4].weight.any()
    # requires_grad says the same.
    for part in (module[0], module[1]):
        part.requires_grad_(False)
    same = from_torch(module)
    assert sorted(same.init(key, x)) == ["4.bias", "4.weight"]
    np.testing.assert_allclose(logits(same, params, x), logits(model, params, x), atol=1e-12)


def test_equal_modules_share_programs_and_changed_weights_do_not(key):
    module, x = dropped(), normal(4)
    first = from_torch(module)
    assert from_torch(module) == first
    assert hash(from_torch(module)) == hash(first)
    with torch.no_grad():
        module[0].weight.zero_()
    assert from_torch(module) != first
    assert float(jnp.abs(first.init(key, x)["0.weight"]).max()) > 0
    loaded = pickle.loads(pickle.dumps(first))
    np.testing.assert_array_equal(logits(loaded, loaded.init(key, x), x), logits(first, first.init(key, x), x))


@pytest.mark.slow
def test_the_page_of_models_runs():
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    names = {"__name__": "models"}
    start = page[page.index("```python\n") + 10 : page.index("```\n\n## ")]
    own = re.findall(r"^``` { .python title=\"PyTorch\" }\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE)
    assert own
    for code in (start, *own):
        exec(compile(code, "models.md", "exec"), names)
    assert isinstance(names["trained"], torch.nn.Module)


def test_tune_takes_a_module(key):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 4)), rng.integers(0, 3, 60)
    tuned = tune(dropped().double(), x[:40], y[:40], x[40:], y[40:], [LAYER_L2], key=key, steps=2, train_steps=2)
    assert tuned.hyperparameters["layer_l2"].shape == (2,)


class Odd(nn.Module):
    """Does one thing that a module cannot do here."""

    def __init__(self, what):
        super().__init__()
        self.what, self.dense, self.plain = what, nn.Linear(4, CLASSES), torch.ones(4)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x):
        match self.what:
            case "in place":
                self.count += 1
            case "replaced":
                self.count = self.count + 1
            case "attribute":
                self.last = x.sum()
            case "random":
                x = x + torch.randn_like(x)
            case "branch":
                x = x if x.sum() > 0 else -x
            case "missing":
                torch.linalg.lu_factor(x)
                torch.special.airy_ai(x)
            case "tokens":
                return self.dense(x), x
            case "flat":
                return self.dense(x).sum(1)
            case "own tensors":
                x = x * self.plain + torch.zeros(4) + torch.arange(4, device=x.device)
        return self.dense(x)


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ("in place", "module Odd changes 'count' when it is called"),
        ("replaced", "module Odd changes 'count' when it is called"),
        ("attribute", "module Odd changes 'last' when it is called"),
        ("random", "module Odd draws random numbers in predictions"),
        ("branch", r"module Odd cannot be applied to samples of shape \(2, 4\)"),
        ("missing", r"operator has no implementation in torchax \(.*airy_ai"),
        ("tokens", "module Odd returns a tuple for 2 samples"),
        ("flat", r"module Odd returns an output of shape \(2,\) for 2 samples of shape \(4,\)"),
    ],
)
def test_what_a_module_cannot_do(what, sentence, key):
    module = Odd(what)
    with pytest.raises(InputError, match=sentence):
        from_torch(module).init(key, normal(4))
    assert type(module.count) is torch.Tensor
    assert not hasattr(module, "last")
    assert not module._forward_hooks


def test_a_module_may_make_tensors(key):
    model = from_torch(Odd("own tensors"))
    expected = Odd("own tensors")
    expected.load_state_dict(export(model, model.given()).state_dict())
    found = logits(model, model.init(key, normal(4)), normal(4))
    np.testing.assert_allclose(found, expected(torch.from_numpy(normal(4)).float()).detach().numpy(), rtol=1e-5)


def frozen_linear():
    return nn.Linear(4, CLASSES).requires_grad_(False)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: nn.Linear(4, CLASSES, device="meta"), "module Linear has no weights: weight is on the device meta"),
        (lambda: nn.LazyLinear(CLASSES), r"module LazyLinear is not initialised \(weight\)"),
        (frozen_linear, "module Linear has no parameters that require a gradient"),
        (lambda: nn.Sequential(nn.Linear(4, 3), nn.Softmax(1)), "module Sequential ends in a softmax"),
        (
            lambda: nn.Sequential(nn.InstanceNorm1d(4, track_running_stats=True), nn.Linear(4, 3)),
            "has the running statistics of 0, an instance normalisation",
        ),
    ],
)
def test_modules_that_are_refused(make, sentence):
    with pytest.raises(InputError, match=sentence):
        from_torch(make())


def test_another_device_is_refused(monkeypatch):
    module = nn.Linear(4, CLASSES)

    class Elsewhere(torch.Tensor):
        device = torch.device("cuda:0")

    monkeypatch.setattr(module, "named_parameters", lambda: [("weight", torch.zeros(3).as_subclass(Elsewhere))])
    with pytest.raises(InputError, match=r"module Linear has weight on the device cuda:0. Call module.cpu\(\) first"):
        from_torch(module)


def test_other_classes_are_refused(key):
    with pytest.raises(InputError, match="module Linear returns 3 logits, and there are 10 classes"):
        as_model(nn.Linear(4, CLASSES), 10).init(key, normal(4))


def test_float64_needs_x64():
    with jax.enable_x64(False), pytest.raises(InputError, match=r"has weight of float64.*Call module.float\(\)"):
        from_torch(nn.Linear(4, CLASSES).double())


def test_the_extra_is_named_where_torchax_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchax", None)
    with pytest.raises(InputError, match=r'needs torchax \(.*Install it: pip install "bilevax\[torch\]"'):
        _torchax.__wrapped__()


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_the_modules_own_mode_does_not_matter(training, key):
    """Dropout is on by a key, and off without one, whatever mode the module was left in."""
    module = nn.Sequential(nn.Linear(4, 50), nn.Dropout(0.5), nn.Linear(50, CLASSES)).double().train(training)
    model, x = from_torch(module), normal(4)
    params = model.init(key, x)
    expected = copy.deepcopy(module).eval()(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(logits(model, params, x), expected, rtol=1e-6)
    assert abs(np.asarray(logits(model, params, x, key)) - expected).max() > 1e-3
    assert module.training == training
