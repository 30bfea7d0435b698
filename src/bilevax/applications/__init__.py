"""Jobs stated as bilevel problems: each makes a `Task`, and an estimator on top of it."""

from bilevax.applications.task import Task as Task
