"""Applications: tasks stated as bilevel problems, with their recipes, baselines and estimators."""

from bilevax.applications.task import Task as Task
