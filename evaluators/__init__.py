"""Evaluators: one line each."""

PLUGINS = {
    "emoji-subject": "evaluators.emoji:Subject",
    "emoji-style": "evaluators.emoji:Style",
    "emoji-body": "evaluators.emoji:Body",
    "emoji-label": "evaluators.emoji:Label",
    "emoji-frechet": "evaluators.emoji:Frechet",
    "imagenet": "evaluators.imagenet:ImageNet",
    "nudenet": "evaluators.nudenet:NudeNet",
    "style": "evaluators.style:Style",
    "style-clip": "evaluators.style:StyleClip",
}
