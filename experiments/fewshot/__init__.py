"""Few-shot learning: Mehra and Hamm (2021), section 3.3."""
