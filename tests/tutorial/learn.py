"""Makes the weights of the pizza judge: from pictures that emoji-sd draws."""

import sys
from pathlib import Path

import numpy as np
from pizza import colours
from safetensors.numpy import save_file

from bench import Prompt
from bench.models import load_model

others = ("apple", "banana", "rose", "pumpkin", "house", "car", "cat", "church")
texts = [f"a {name}" for name in others] + ["a pizza"] * len(others)
rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 12
prompts = [Prompt(f"{n}", text, n) for n, text in enumerate(texts * rounds)]
x = np.array([colours(image) for image in load_model("emoji-sd").generate(prompts)])
y = np.array([1.0 if "pizza" in prompt.text else -1.0 for prompt in prompts])

half = len(y) // 2
xs = np.column_stack([x, np.ones(len(x))])
ridge = 0.01 * np.eye(xs.shape[1])
weight = np.linalg.solve(xs[:half].T @ xs[:half] + ridge, xs[:half].T @ y[:half])
right = float(((xs[half:] @ weight > 0) == (y[half:] > 0)).mean())
save_file(
    {"weight": weight[:-1].copy(), "bias": weight[-1:].copy()},
    Path(__file__).with_name("pizza.safetensors"),
)
print(f"right on {right:.0%} of {len(y) - half} other pictures")
