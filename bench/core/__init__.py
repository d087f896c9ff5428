"""Values, protocols, exceptions and the training loop that everything else uses."""
