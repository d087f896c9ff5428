"""Figures: each module turns records into numbers, and numbers into a drawing."""
