"""Values, protocols and the training loop that everything else uses."""
