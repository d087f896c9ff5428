"""Evaluators: one line each."""

PLUGINS = {
    "emoji-subject": "evaluators.emoji:Subject",
    "emoji-style": "evaluators.emoji:Style",
    "emoji-body": "evaluators.emoji:Body",
    "emoji-label": "evaluators.emoji:Label",
    "emoji-frechet": "evaluators.emoji:Frechet",
    "clip-gender": "evaluators.gender:Gender",
    "clip-gender-balance": "evaluators.gender:GenderBalance",
}
