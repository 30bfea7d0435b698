"""The history of a solve as a table."""

from typing import Any

import numpy as np

from bilevax._checks import optional
from bilevax.loop.scalars import named
from bilevax.solvers.base import Info


def frame_of(history: Info) -> Any:
    """The table of `Result.to_frame`."""
    pandas = optional("pandas", "Result.to_frame", "apps")
    shape = np.shape(history.upper_loss)  # (steps,) or (steps, members)
    columns: dict[str, Any] = {}
    for name, x in named(history, reserved=("step", "member")).items():
        values = np.asarray(x)
        own = values.shape[len(shape) :]
        flat = values.reshape(int(np.prod(shape)), *own)
        for at in np.ndindex(own):
            columns[name if not own else f"{name}[{','.join(map(str, at))}]"] = flat[(slice(None), *at)]
    steps = np.arange(1, shape[0] + 1)
    if len(shape) == 1:
        return pandas.DataFrame(columns, index=pandas.Index(steps, name="step"))
    index = pandas.MultiIndex.from_product([steps, np.arange(shape[1])], names=["step", "member"])
    return pandas.DataFrame(columns, index=index)
