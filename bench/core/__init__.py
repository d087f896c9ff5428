"""Values, contracts and errors that everything else is written in."""
