"""Samples to review, from a user's files as they come: tables, arrays, pictures and text."""
