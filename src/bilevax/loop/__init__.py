"""The loop of a solve: what goes in, the compiled steps, what comes out."""
