"""UCE against its normal equations and a brute-force least-squares problem, in float64."""

import pytest
import torch
from fakes import finished, float64_text

from bench import Concept, IncompatibleError
from bench.plugins.registry import Ref, resolved

STYLE = Concept("van gogh", "style", "painting")
CHURCH = Concept("church", "object", "house")


def edited(tiny, ctx, concept, **params):
    base, erased = tiny.copy(), tiny.copy()
    method = finished("methods", "uce", concept, **params)
    method.erase(erased, concept, ctx)
    before = {n: p.double() for n, p in base.parameters("esd-x-strict").items()}
    after = {n: p.double() for n, p in erased.parameters("esd-x-strict").items()}
    return method, before, after


def vectors(tiny, method, concept):
    """Pairs and preserved vectors, collected position by position."""
    pairs, kept = [], []
    guide = tiny.encode([method.guide])[0].double()
    g = len(tiny.token_ids([method.guide])[0])
    for term in concept.terms or (concept.name,):
        hidden, i = tiny.encode([term])[0].double(), len(tiny.token_ids([term])[0])
        k = 0
        while i + k < len(hidden) and g + k < len(hidden):
            pairs.append((hidden[i + k], guide[g + k]))
            k += 1
            if method.token_mode == "last":
                break
    texts = [t for t in method.preserve.split(";") if t]
    if method.token_mode == "tail":
        kept = [v for t in ["", *texts] for v in tiny.encode([t])[0].double()]
    else:
        kept = [tiny.encode([t])[0, len(tiny.token_ids([t])[0])].double() for t in texts]
    return pairs, kept


@pytest.mark.parametrize("mode", ["tail", "last"])
@pytest.mark.parametrize("concept", [STYLE, CHURCH, Concept("n", "nsfw", "", ("a foot", "an ear"))])
def test_uce_minimises_its_objective(exact, ctx, mode: str, concept: Concept) -> None:
    """Stack every weighted row into one least-squares problem and let LAPACK solve it."""
    method, before, after = edited(exact, ctx, concept, token_mode=mode, preserve="a cat;a rose")
    pairs, kept = vectors(exact, method, concept)
    for name, w in before.items():
        rows = [method.erase_scale**0.5 * c for c, _ in pairs]
        rows += [method.preserve_scale**0.5 * p for p in kept]
        rows += list(method.lamb**0.5 * torch.eye(w.shape[1], dtype=torch.float64))
        wanted = [method.erase_scale**0.5 * w @ g for _, g in pairs]
        wanted += [method.preserve_scale**0.5 * w @ p for p in kept]
        wanted += list(method.lamb**0.5 * w.T)
        best = torch.linalg.lstsq(torch.stack(rows), torch.stack(wanted)).solution.T
        assert torch.allclose(after[name], best, atol=1e-8), name


@float64_text
def test_uce_satisfies_its_normal_equations(tiny, ctx) -> None:
    tiny.pipe.unet.double()
    tiny.pipe.text_encoder.double()
    method, before, after = edited(tiny, ctx, STYLE)
    pairs, kept = vectors(tiny, method, STYLE)
    for name, w in before.items():
        left = method.lamb * after[name] - method.lamb * w
        for c, g in pairs:
            left = left + method.erase_scale * torch.outer(after[name] @ c - w @ g, c)
        for p in kept:
            left = left + method.preserve_scale * torch.outer((after[name] - w) @ p, p)
        assert left.norm() / w.norm() < 1e-8, name


def test_only_keys_and_values_change(tiny, ctx) -> None:
    erased = finished("methods", "uce", STYLE).erase(tiny.copy(), STYLE, ctx)
    strict = set(tiny.parameters("esd-x-strict"))
    for name, p in tiny.parameters("full").items():
        assert torch.equal(p, erased.parameters("full")[name]) == (name not in strict), name


def test_defaults_by_mode() -> None:
    def scale(**params):
        return finished("methods", "uce", CHURCH, "photo", **params).scale_of_preserved()

    assert scale() == 1.0
    assert scale(preserve="a;b;c") == 0.25
    assert scale(preserve=";".join("abcdefghijkl")) == 0.1
    assert scale(preserve="a;b;c", token_mode="last") == 1.0
    assert scale(preserve="a;b;c", preserve_scale="0.5") == 0.5
    for world, guide in (("photo", "art"), ("emoji", "painting")):
        assert resolved("methods", Ref("uce"), STYLE, world).params["guide"] == guide


def test_a_guide_that_is_the_concept_is_refused(tiny, ctx) -> None:
    with pytest.raises(IncompatibleError, match="the guide 'church' is the concept itself"):
        finished("methods", "uce", CHURCH, guide="church").erase(tiny, CHURCH, ctx)


def test_artists_of_a_file_are_preserved_like_texts(tiny, ctx, tmp_path, monkeypatch) -> None:
    """Each name once, without the erased one; however many are encoded at once."""
    file = tmp_path / "artists.csv"
    file.write_text("case_number,prompt,artist\n0,x,Monet\n1,y,Monet\n2,z,Van Gogh\n3,w,Klimt\n")
    monkeypatch.setattr("methods.uce.CHUNK", 2)
    _, _, given = edited(tiny, ctx, STYLE, preserve="Monet;Klimt", preserve_scale=0.5)
    _, _, read = edited(tiny, ctx, STYLE, artists=str(file), preserve_scale=0.5)
    assert all(torch.allclose(read[name], given[name], atol=1e-7) for name in given)


def test_what_differs_from_the_paper() -> None:
    (line,) = finished("methods", "uce", STYLE, "photo").deviations(STYLE)
    assert "artists=FILE, the paper's artists1734_prompts.csv" in line
    assert finished("methods", "uce", STYLE, "photo", preserve="a").deviations(STYLE) == ()
    assert finished("methods", "uce", CHURCH, "photo").deviations(CHURCH) == ()


@pytest.mark.parametrize(
    "params", [{"guide": "house " * 31}, {"preserve": f"a cat;{'rose ' * 31}"}]
)
def test_texts_that_are_cut_are_refused(tiny, ctx, params) -> None:
    with pytest.raises(IncompatibleError, match="has 31 tokens: expected at most 30"):
        finished("methods", "uce", CHURCH, **params).erase(tiny, CHURCH, ctx)
