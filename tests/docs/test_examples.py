"""The scripts of the gallery, in their quick form: what they show holds, and their pictures are drawn."""

import dataclasses
import importlib.util
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "examples").glob("*.py"))
PAGE = (ROOT / "docs" / "gallery.md").read_text()


def load(name):
    spec = importlib.util.spec_from_file_location(f"example_{name}", ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def denoising(found):
    assert found["review_recall"] > 0.75
    assert found["review_precision"] > 0.95
    assert found["recall"] > 0.9
    assert found["precision"] > 0.9
    assert found["accuracy"] > found["accuracy_as_given"] + 0.1
    assert found["accuracy"] > found["accuracy_trusted_alone"] - 0.01


def thousand_strengths(found):
    assert found["found"] > 0.8
    assert found["error"] < 0.6 * found["error_single"]
    assert found["error"] < 1.2 * found["error_lasso"]


def constrained_attack(found):
    assert found["violation"] <= 1e-3
    assert found["changed"]
    assert found["probability_before"] < found["probability_of_unmoved"] < found["probability_after"] - 0.1


def fewshot(found):
    assert found["accuracy"] > 0.7
    assert found["accuracy"] > found["accuracy_pixels"] + 0.15
    assert found["accuracy"] > found["accuracy_untrained"] + 0.15


def group_lasso(found):
    assert found["found, a strength for each group"] == found["found, one strength"] == 5
    assert found["kept in vain, a strength for each group"] <= 0.7 * found["kept in vain, one strength"]
    assert found["error, a strength for each group"] < found["error, one strength"]


def learned_loss(found):
    best, *others = sorted(found, key=found.get)
    assert best == "all targets right"
    assert others[0] == "learned loss"
    assert found["learned loss"] < 0.9 * found["Huber's loss"]
    assert found["learned loss"] < 0.55 * found["least squares"]


def implicit_layer(found):
    assert found["robust layer"] < 0.15
    assert found["robust layer"] < found["least squares"] / 2
    assert found["robust layer"] < found["robust layer, untrained network"] / 5


CHECKS = (denoising, thousand_strengths, constrained_attack, fewshot, group_lasso, learned_loss, implicit_layer)


def test_every_script_is_checked_and_shown():
    names = {check.__name__ for check in CHECKS}
    assert names == {path.stem for path in SCRIPTS}
    assert names == set(re.findall(r'--8<-- "examples/(\w+)\.py"', PAGE))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_quick_form(check, tmp_path, capsys):
    check(load(check.__name__).main(quick=True, out=tmp_path))
    assert capsys.readouterr().out.endswith(".\n")
    drawn = sorted(path.name for path in tmp_path.iterdir())
    assert drawn == sorted(re.findall(rf"images/gallery/({check.__name__}\w*\.png)", PAGE))
    for name in drawn:
        for path in (tmp_path / name, ROOT / "docs" / "images" / "gallery" / name):
            with Image.open(path) as image:
                assert image.format == "PNG"
                assert 700 <= image.width <= 1800
                assert 300 <= image.height <= 1200
                assert len(np.unique(np.asarray(image.convert("L")))) > 10  # something is drawn
        assert (ROOT / "docs" / "images" / "gallery" / name).stat().st_size < 80_000


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_the_command_line(path, capsys):
    module = load(path.stem)
    assert vars(module.PARSER.parse_args([])) == {"quick": False, "out": Path()}
    assert vars(module.PARSER.parse_args(["--quick", "--out", "there"])) == {"quick": True, "out": Path("there")}
    with pytest.raises(SystemExit) as left:
        module.PARSER.parse_args(["--help"])
    assert left.value.code == 0
    assert module.PARSER.description in capsys.readouterr().out
    assert f"python examples/{path.name} [--quick] [--out DIR]" in module.__doc__


def test_the_layers_derivative_is_that_of_finite_differences():
    """Of the loss of a whole batch of waves, along random directions of all parameters."""
    example = load("implicit_layer")
    layer = dataclasses.replace(example.ROBUST, steps=3000)
    waves, params = example.draw(jax.random.key(0), tasks=3, queries=7), example.start(jax.random.key(1))
    loss = jax.jit(lambda params: example.loss(params, waves, layer))
    gradient, h = jax.jit(jax.grad(loss))(params), 1e-5
    for seed in range(3):
        leaves, form = jax.tree.flatten(params)
        keys = jax.random.split(jax.random.key(seed), len(leaves))
        along = form.unflatten([jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)])
        ahead, behind = (loss(jax.tree.map(lambda x, d, s=s: x + s * h * d, params, along)) for s in (1, -1))
        slope = sum(jnp.vdot(g, d) for g, d in zip(jax.tree.leaves(gradient), jax.tree.leaves(along), strict=True))
        np.testing.assert_allclose(slope, (ahead - behind) / (2 * h), rtol=1e-4, atol=1e-8)
