"""The evaluators by name, each in a file of this folder."""

PLUGINS = {
    "emoji-subject": "evaluators.emoji:Subject",
    "emoji-style": "evaluators.emoji:Style",
    "emoji-body": "evaluators.emoji:Body",
    "emoji-label": "evaluators.emoji:Label",
    "emoji-frechet": "evaluators.emoji:Frechet",
    "fid": "evaluators.fid:Fid",
    "kid": "evaluators.fid:Kid",
    "clip-score": "evaluators.clip_score:ClipScore",
    "imagenet": "evaluators.imagenet:ImageNet",
    "nudenet": "evaluators.nudenet:NudeNet",
    "style": "evaluators.style:Style",
    "style-clip": "evaluators.style:StyleClip",
    "clip-gender": "evaluators.gender:Gender",
    "clip-gender-balance": "evaluators.gender:GenderBalance",
}
