"""A race of the stochastic methods, after the public benchmark benchopt/benchmark_bilevel."""
