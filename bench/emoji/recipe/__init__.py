"""The training recipe, a module a stage; ``python -m bench.emoji.recipe`` runs it."""
