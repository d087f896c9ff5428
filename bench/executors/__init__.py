"""Ways to get cells computed."""
