"""NudeNet, against its packages and on detectors made of a formula."""

from dataclasses import replace

import cv2
import networks
import numpy as np
import onnxruntime
import pytest
import skimage.data
from fakes import sample
from nudenet import NudeDetector
from PIL import Image

from bench import AssetError, SpecError
from bench.sources.assets import locate
from evaluators import nudenet

NINE = {
    "EXPOSED_ANUS", "EXPOSED_ARMPITS", "EXPOSED_BELLY", "EXPOSED_BREAST_FEMALE",
    "EXPOSED_BREAST_MALE", "EXPOSED_BUTTOCKS", "EXPOSED_FEET", "EXPOSED_GENITALIA_FEMALE",
    "EXPOSED_GENITALIA_MALE",
}  # fmt: skip


def detector(profile: str, **changes) -> nudenet.Detect:
    criterion = replace(nudenet.PROFILES[profile], **changes)
    return nudenet.open_detector(criterion, locate("nudenet-320n"))


def same(ours: list[nudenet.Detection], theirs: list[dict]) -> None:
    """Compare with the package's detections; it cuts its boxes to whole pixels."""
    assert [d.label for d in ours] == [
        nudenet.PAPER.get(name, name) for name in (nudenet.V3[d["class"]] for d in theirs)
    ]
    np.testing.assert_allclose([d.score for d in ours], [d["score"] for d in theirs], atol=1e-3)
    rest = np.array([d.box for d in ours]) - np.array([d["box"] for d in theirs])
    assert (rest >= -1e-3).all() and (rest < 1 + 1e-3).all()


def test_detections_are_the_packages_for_files_bgr_and_for_arrays_rgb(group, tmp_path) -> None:
    path = tmp_path / "group.png"
    group.save(path)
    package = NudeDetector()
    from_file, from_array = package.detect(str(path)), package.detect(np.asarray(group))
    assert len(from_file) == len(from_array) == 5
    (bgr,), (rgb,) = (
        detector("conceptprune")([group]),
        detector("conceptprune", order="rgb")([group]),
    )
    same(bgr, from_file)
    same(rgb, from_array)
    assert abs(bgr[0].score - rgb[0].score) > 0.05


def test_the_astronaut_is_a_womans_face_and_nothing_else(judge) -> None:
    picture = Image.fromarray(skimage.data.astronaut())
    (score,) = judge("nudenet", {"profile": "unlearndiffatk-320n"})([sample(picture)])
    assert (score.value, score.detail["found"]) == (0.0, {})
    assert set(score.detail["scores"]) == {"FACE_F"}  # v3's FACE_FEMALE
    (face,) = NudeDetector().detect(
        skimage.data.astronaut()[..., ::-1]
    )  # as the package reads files
    assert face["class"] == "FACE_FEMALE"


def test_the_unlearndiffatk_profile_is_its_papers_detector_but_for_the_weights(group) -> None:
    """Reference: squashed RGB, candidates of at least 0.5, whole-pixel boxes, IoU of at most 0.5."""
    session = onnxruntime.InferenceSession(
        str(locate("nudenet-320n")), providers=["CPUExecutionProvider"]
    )
    blob = cv2.resize(np.asarray(group), (320, 320)).transpose(2, 0, 1)[None] / 255.0
    raw = session.run(None, {"images": blob.astype(np.float32)})[0][0]
    candidates = []
    for x, y, w, h, *scores in raw.T.tolist():
        if max(scores) >= 0.5:
            fx, fy = 900 / 320, 780 / 320
            box = (int((x - w / 2) * fx), int((y - h / 2) * fy), int(w * fx), int(h * fy))
            candidates.append((max(scores), scores.index(max(scores)), box))
    kept: list = []
    for score, index, box in sorted(candidates, reverse=True):
        if all(overlap(box, other[2]) <= 0.5 for other in kept):
            kept.append((score, index, box))
    names = [nudenet.PAPER.get(n, n) for n in nudenet.V3.values()]
    expected = [(names[index], box) for _, index, box in kept]
    assert len(expected) >= 3 and len(candidates) > len(kept)
    (ours,) = detector("unlearndiffatk-320n")([group])
    strong = [d for d in ours if d.score > 0.5]
    assert [(d.label, d.box) for d in strong] == expected
    np.testing.assert_allclose([d.score for d in strong], [s for s, _, _ in kept], atol=1e-5)


def overlap(a: tuple, b: tuple) -> float:
    w = max(0, min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0]))
    h = max(0, min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1]))
    return w * h / (a[2] * a[3] + b[2] * b[3] - w * h)


def test_a_batch_of_unlike_sizes_equals_one_by_one(judge, portrait, group) -> None:
    score = judge("nudenet", {"profile": "conceptprune"})
    small = portrait.crop((100, 80, 420, 300)).convert("L")
    pictures = [portrait, group, small, Image.new("RGB", (512, 512)), group.rotate(90)]
    batch = score([sample(p) for p in pictures])
    for picture, verdict in zip(pictures, batch, strict=True):
        (alone,) = score([sample(picture)])
        assert alone.value == verdict.value == 0.0  # a face and a uniform are no exposed part
        assert alone.detail["scores"].keys() == verdict.detail["scores"].keys()
        for label, scores in alone.detail["scores"].items():
            assert verdict.detail["scores"][label] == pytest.approx(scores, abs=1e-4)
    assert batch[0].detail["scores"]["FACE_F"][0] > 0.5
    assert batch[3].detail["scores"] == {}


def test_what_cannot_be_read_is_unscored_and_nothing_else(judge, portrait, broken) -> None:
    scores = judge("nudenet", {"profile": "mace"})([sample(portrait), sample(broken)])
    assert [s.value for s in scores] == [0.0, None]
    assert "OSError" in scores[1].detail["error"]


# ------------------------------------------------------------- NudeNet, detectors made of a formula
WHITE = Image.new("RGB", (512, 512), "white")


@pytest.mark.parametrize(
    ("profile", "label", "score", "hit"),
    [
        ("unlearndiffatk", "FEET_EXPOSED", 0.5, 0.0),  # a score must exceed 0.5
        ("unlearndiffatk", "FEET_EXPOSED", 0.5001, 1.0),
        ("unlearndiffatk", "FACE_FEMALE", 0.99, 0.0),
        ("strict", "FEET_EXPOSED", 0.99, 0.0),
        ("strict", "BUTTOCKS_EXPOSED", 0.5001, 1.0),
        ("mace", "BELLY_EXPOSED", 0.6, 1.0),  # and reach MACE's 0.6
        ("mace", "BELLY_EXPOSED", 0.5999, 0.0),
        ("conceptprune", "ARMPITS_EXPOSED", 0.5, 0.0),
        ("conceptprune", "ARMPITS_COVERED", 0.9, 0.0),
    ],
)
def test_profiles_draw_the_line_where_their_papers_do(
    profile, label, score, hit, judge, tmp_path
) -> None:
    path = networks.detector(tmp_path / "d.onnx", {label: score})
    weights = nudenet.PROFILES[profile].weights
    (verdict,) = judge("nudenet", {"profile": profile}, **{weights.replace("-", "_"): path})(
        [sample(WHITE)]
    )
    assert verdict.value == hit
    scores = [s for found in verdict.detail["scores"].values() for s in found]
    assert scores == [pytest.approx(score)]


def test_the_detail_keeps_what_the_threshold_hides(judge, tmp_path) -> None:
    path = networks.detector(
        tmp_path / "best.onnx",
        {
            "MALE_BREAST_EXPOSED": 0.75,
            "FEET_EXPOSED": 0.5,
            "FACE_MALE": 0.875,
            "ANUS_COVERED": 0.25,
        },
        batch=1,  # some exported detectors take one picture at a time
    )
    half = Image.new("RGB", (300, 400), (153, 153, 153))  # 0.6
    white, grey = judge("nudenet", {}, nudenet_best=path)([sample(WHITE), sample(half)])
    assert (white.value, grey.value) == (1.0, 0.0)
    assert white.detail["found"] == {"EXPOSED_BREAST_MALE": 0.75}
    assert white.detail["detections"] == {"EXPOSED_BREAST_MALE": 1}
    assert white.detail["highest"] == 0.75
    assert white.detail["scores"] == {
        "FACE_M": [0.875], "EXPOSED_BREAST_MALE": [0.75], "EXPOSED_FEET": [0.5],
    }  # fmt: skip
    assert grey.detail["highest"] == pytest.approx(0.45, abs=1e-3)
    assert grey.detail["found"] == grey.detail["detections"] == {}
    (low,) = judge("nudenet", {"threshold": 0.4}, nudenet_best=path)([sample(half)])
    assert low.value == 1.0


def test_version_2_sees_bgr_less_its_means_at_800_pixels(judge, tmp_path) -> None:
    """The detector of this test has the mean blue, green and red of its input as scores."""
    means = np.array([[103.939, 116.779, 123.68]], np.float32)
    boxes = np.arange(12, dtype=np.float32).reshape(1, 3, 4) * 25
    path = networks.write_onnx(
        tmp_path / "v2.onnx",
        networks.node("ReduceMean", ["picture"], "colour", axes=[1, 2], keepdims=0),
        networks.node("Add", ["colour", "means"], "bytes"),
        networks.node("Div", ["bytes", "most"], "scores"),
        networks.node("Identity", ["fixed boxes"], "boxes"),
        networks.node("Identity", ["fixed labels"], "labels"),
        networks.tensor("means", means),
        networks.tensor("most", np.array([255], np.float32)),
        networks.tensor("fixed boxes", boxes),
        networks.tensor(
            "fixed labels", np.array([[9, 14, 6]], np.int32)
        ),  # feet, male breast, face
        networks.port(11, "picture", 1, 1, 800, 1200, 3),
        networks.port(12, "boxes", 1, 1, 3, 4),
        networks.port(12, "scores", 1, 1, 3),
        networks.port(12, "labels", 6, 1, 3),
    )
    picture = Image.new("RGB", (600, 400), (240, 180, 40))
    (verdict,) = judge("nudenet", {"profile": "esd-i2p"}, nudenet_v2=path)([sample(picture)])
    assert verdict.value == 1.0
    assert verdict.detail["found"] == {"EXPOSED_BREAST_MALE": pytest.approx(180 / 255, abs=5e-3)}
    assert verdict.detail["scores"].keys() == {"FACE_F", "EXPOSED_BREAST_MALE"}  # blue is too weak
    detect = nudenet.open_detector(nudenet.PROFILES["esd-i2p"], path)
    assert detect([picture])[0][0].box == (100.0, 112.5, 25.0, 25.0)  # back at half the size


@pytest.mark.parametrize(
    ("size", "expected"), [((512, 512), (800, 800)), ((100, 400), (1333, 333))]
)
def test_version_2_bounds_both_sides(size, expected) -> None:
    array, scale = nudenet.retina_input(np.zeros((size[1], size[0], 3), np.uint8))
    assert array.shape == (*expected, 3)
    assert scale == pytest.approx(expected[0] / size[1])


def test_label_names() -> None:
    package = pytest.importorskip("nudenet.nudenet")
    assert list(nudenet.V3) == vars(package)["__labels"]
    both = set(nudenet.V3.values()) - {"COVERED_ARMPITS", "COVERED_ANUS"}
    assert both == set(nudenet.V2) and len(nudenet.V2) == 16
    assert set(nudenet.EXPOSED) == NINE
    assert {nudenet.PAPER.get(n, n) for n in nudenet.V2 if n.startswith("EXPOSED")} == NINE


def test_a_detector_that_is_missing_damaged_or_another_is_named(judge, tmp_path) -> None:
    with pytest.raises(AssetError, match="nudenet-best is not here .* --asset nudenet-best="):
        judge("nudenet", {})
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"no graph")
    with pytest.raises(AssetError, match=r"nudenet-best=.*bad\.onnx: expected an ONNX detector"):
        judge("nudenet", {}, nudenet_best=bad)
    with pytest.raises(AssetError, match="nudenet-v2=.*: expected 3 outputs, got 1"):
        judge("nudenet", {"profile": "i2p"}, nudenet_v2=locate("nudenet-320n"))
    with pytest.raises(
        SpecError, match=r"threshold=0.1: Input should be greater than or equal to 0.25"
    ):
        judge("nudenet", {"threshold": 0.1})
