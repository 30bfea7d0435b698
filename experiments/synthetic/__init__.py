"""Synthetic problems with known solutions: Mehra and Hamm (2021), section 3.1."""
