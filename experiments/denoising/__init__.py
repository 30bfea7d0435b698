"""Wrong labels: Mehra and Hamm (2021), section 3.2 and appendix D.1."""
