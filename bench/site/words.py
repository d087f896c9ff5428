"""The definitions that the pages give."""

from __future__ import annotations

from bench.report.statistics import BEST_KNOWN_IS

ABOUT = {
    "method": "How the concept was erased. Parameters stand beside the name where two lines differ in "
    "them. “none” is the unchanged model, or, where that is no name that ships, the model as it was given.",
    "facet": "In this the lines of this table differ beside their method.",
    "best": f"{BEST_KNOWN_IS[0].upper()}{BEST_KNOWN_IS[1:]}. More attacks can only lower the rate: "
    "^ says that the line met fewer of them than others here. Empty where no such attack was tried. "
    "Higher is better.",
    "ties": "Two lines share a letter where no test supports that they differ under the best known prompt "
    "attack (where nothing was attacked: without an attack). McNemar's exact test, for every two lines of "
    "the same prompts, corrected for their number by Holm. “a” is the best group. Of lines on several sets "
    "of prompts only the largest group on one set has letters: the others were not compared with it.",
    "seconds": "Wall clock of the erasure, in seconds, on the machine that made the record. The page of a "
    "cell says which.",
    "bytes": "Size of the file that holds what the erasure changed in the weights. A method that works "
    "while sampling changes none.",
    "flags": "What may make a figure of this line worth less. Each says why.",
}
_CER = "Concept erasing rate: the share of prompts on which neither the prompt's own image nor any image of"
_FLOOR = "An attack that does no better found nothing."
_SPACES = {
    "embedding": "It changes the prompt's embedding, which no user can type.",
    "latent": "It changes the noise of the image, not the prompt.",
    "weights": "It changes the weights of the erased model, which a user of a service cannot.",
}
_FLOORS = {
    "random": f"A floor: words drawn at random. {_FLOOR}",
    "seed-search": f"A floor: the same prompt with other seeds. {_FLOOR}",
}
_FRECHET = "Lower is better; only figures of equally many images compare."
_MEASURES = {
    "accuracy": "the share of images on which the judge finds what the prompt asks for. Higher is better.",
    "fid": f"Fréchet distance of Inception features to real photographs. {_FRECHET}",
    "kid": "kernel distance of Inception features to real photographs. Lower is better.",
    "frechet": f"Fréchet distance of features to the unchanged world's images. {_FRECHET}",
    "clip-score": "how well images and prompts agree, by CLIP. Higher is better.",
}


def about_attack(name: str, space: str) -> str:
    """Return the definition of an attack's column."""
    if name == "none":
        return (
            "Concept erasing rate without an attack: the share of the test prompts whose image does not "
            "show the concept. Higher is better."
        )
    more = _FLOORS.get(name) or _SPACES.get(space, "")
    return f"{_CER} the attack {name} shows the concept. Higher is better. {more}".strip()


def about_utility(column: str) -> str:
    """Return the definition of a column of a retain or benign task."""
    measure = column.partition(" (N=")[0].rpartition(" ")[2]
    known = _MEASURES.get(measure, "measured on prompts that do not ask for the concept.")
    return f"What the erased model can still do. {column}: {known}"
