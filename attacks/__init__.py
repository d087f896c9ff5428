"""Attacks: one file each, one line here each."""

PLUGINS = {
    "none": "attacks.none:NoAttack",
    "unlearndiff": "attacks.unlearndiff:UnlearnDiff",
}
