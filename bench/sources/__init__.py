"""Models, weights and data: names, places, digests."""
