"""The README's quick start does what its last line says."""

import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np

README = Path(__file__).parents[2] / "README.md"


def test_quick_start():
    """20 strengths tuned by gradient beat the best single one of a fine grid, and find the two features."""
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    names: dict = {}
    exec(code, names)
    result, batch, error = (names[k] for k in ("result", "batch", "error"))
    x, y = batch.lower
    single = [
        error(jnp.linalg.solve(x.T @ x / 40 + strength * jnp.eye(20), x.T @ y / 40), batch.upper)
        for strength in np.exp(np.linspace(-6, 3, 100))
    ]
    assert error(result.v, batch.upper) < 0.7 * min(single)
    np.testing.assert_array_equal(np.argsort(-np.abs(result.v))[:2], [1, 0])
    # v is the minimiser of g at the strengths found: checked by the normal equations.
    exact = jnp.linalg.solve(x.T @ x / 40 + jnp.diag(jnp.exp(result.u)), x.T @ y / 40)
    np.testing.assert_allclose(result.v, exact, atol=5e-3)


def test_the_audits_page():
    code, _ = re.findall(r"```python\n(.*?)```", (README.parent / "docs" / "audit.md").read_text(), flags=re.DOTALL)
    names: dict = {}
    exec(code, names)
    report, lost = names["report"], names["lost"]
    np.testing.assert_allclose(lost, [report.clean.mean() - report.attacked.mean()])
    assert len(report.points.y) == 10  # 5% of 200


def test_the_few_shot_page():
    (code,) = re.findall(r"```python\n(.*?)```", (README.parent / "docs" / "fewshot.md").read_text(), flags=re.DOTALL)
    names: dict = {}
    exec(code, names)
    classifier, classes = names["classifier"], names["classes"]
    assert set(classifier.predict(classes[6:9, 2])) <= {"six", "seven", "eight"}
    # With one class in three right by chance.
    assert names["found"].mean > 0.45
