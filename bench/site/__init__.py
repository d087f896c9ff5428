"""The leaderboard: pages that open from disk, made from records alone."""
