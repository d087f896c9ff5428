"""From what the user asked for to cells."""
