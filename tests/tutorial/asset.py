from bench import Asset

WEIGHTS = Asset(
    about="The pizza judge's weights",
    source="made by lab/learn.py",
    size=1,
    licence="Apache-2.0",
    form="file",
    installed="lab/pizza.safetensors",
)
