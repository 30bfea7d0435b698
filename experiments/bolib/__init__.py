"""Bilevel problems of the literature with known solutions, solved from their given starts."""
