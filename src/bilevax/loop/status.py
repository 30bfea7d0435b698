"""How a solve can end."""

import enum


class Status(enum.Enum):
    """How a solve ended."""

    FINISHED = "all steps were taken"
    STOPPED = "the stop rule was met before all steps were taken"
    EXHAUSTED = "the host's batches ran out before all steps were taken"
    INTERRUPTED = "the solve was interrupted from the keyboard; the state is that of the last finished step"
    TERMINATED = "a signal asked the process to end; the state is that of the last finished step"
    NON_FINITE = (
        "a step gave a NaN or an infinity; the state is the last finite one. Likely causes: a step size too large for "
        "the curvature of the losses (Penalty's: times gamma), an unbounded loss, or a loss with log or sqrt at zero. "
        "Lower the step sizes first"
    )
