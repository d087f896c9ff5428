"""The attacks by name, each in a file of this folder."""

PLUGINS = {
    "none": "attacks.none:NoAttack",
    "random": "attacks.random_tokens:RandomTokens",
    "seed-search": "attacks.seed_search:SeedSearch",
    "unlearndiff": "attacks.unlearndiff:UnlearnDiff",
    "p4d": "attacks.p4d:P4D",
    "p4d-official": "attacks.p4d_official:P4DOfficial",
    "transfer": "attacks.transfer:Transfer",
    "submitted": "attacks.submitted:Submitted",
    "ring-a-bell": "attacks.ring_a_bell:RingABell",
    "mma": "attacks.mma:Mma",
    "cce": "attacks.cce:CCE",
    "noise-probe": "attacks.noise_probe:NoiseProbe",
    "mask-revival": "attacks.mask_revival:MaskRevival",
    "relearn": "attacks.relearn:Relearn",
}
