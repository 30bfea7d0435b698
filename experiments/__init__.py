"""The tables and figures of the papers, by study: `python -m experiments --list` lists them."""
