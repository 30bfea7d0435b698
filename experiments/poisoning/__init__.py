"""Training-data poisoning: Mehra and Hamm (2021), section 3.4."""
