"""Doors of the view-synthesis models: files, names, rendering a scene, the RealEstate10K protocol, LPIPS."""

import json
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from view_scenes import picture, ring

from scenetx.cli import main
from scenetx.core import Cameras, InputError, Original, Points, Scene, View
from scenetx.data.re10k import open_clips, read_index
from scenetx.measure.image import ssim
from scenetx.measure.lpips import Lpips, load_lpips
from scenetx.measure.published import published_psnr, published_ssim
from scenetx.models import lvsm, svsm, zoo
from scenetx.models.lvsm import Lvsm, LvsmConfig
from scenetx.models.open_view_model import build_view_model, open_view_model, save_view_model, view_models
from scenetx.models.rays import mean_frame
from scenetx.models.rust import UNPOSED, Rust, RustConfig
from scenetx.models.svsm import Svsm, SvsmConfig
from scenetx.models.view_model import Views
from scenetx.pipeline.re10k import Re10kSettings, evaluate_re10k, framed, resized_and_cut
from scenetx.pipeline.render import PathSettings, render_path
from scenetx.pipeline.view_render import Painter, PaintSettings, landmarks

SMALL = SvsmConfig(dim=16, heads=1, patch=8, encoder_layers=1, decoder_layers=1)


def small_svsm() -> Svsm:
    torch.manual_seed(0)
    return Svsm(SMALL).eval()


# --- files and names --------------------------------------------------------------------------------------------------


def test_a_saved_model_comes_back_as_it_was(tmp_path: Path):
    torch.manual_seed(0)
    small = replace(UNPOSED, conv_blocks=2, conv_width=8, dim=32, heads=2, hidden=48, encoder_layers=1)
    for model in (small_svsm(), Rust(RustConfig(small, estimator_layers=1, query_dim=32))):
        again = open_view_model(save_view_model(model, tmp_path / "model.safetensors"))
        assert type(again) is type(model)
        assert again.config == model.config
        assert again.identity() == model.identity()


def test_files_that_are_no_models_are_named(tmp_path: Path):
    path = save_view_model(small_svsm(), tmp_path / "model.safetensors")
    weights = {name: tensor.clone() for name, tensor in small_svsm().state_dict().items()}

    def spoil(about: object, tensors: dict[str, torch.Tensor] | None = None) -> Path:
        save_file(tensors or weights, path, metadata={"scenetx": json.dumps(about)})
        return path

    settings = {"dim": 16, "heads": 1, "encoder_layers": 1, "decoder_layers": 1}
    good = {"format": "scenetx-model-1", "model": "svsm", "settings": settings}
    assert isinstance(open_view_model(spoil(good)), Svsm)
    for bad, said in (
        ({**good, "format": "scenetx-model-0"}, "another version"),
        ({**good, "model": "os.system"}, "use one of"),
        ({**good, "settings": {"dim": "16; import os"}}, "type int"),
        ({**good, "settings": {"width": 3}}, "unknown setting"),
        ({**good, "settings": {**settings, "dim": 32}}, "does not fit"),
        ([], "another version"),
    ):
        with pytest.raises(InputError, match=said):
            open_view_model(spoil(bad))
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(InputError, match="no model known"):
        open_view_model(path)
    path.write_bytes(b"nonsense")
    with pytest.raises(InputError, match="broken"):
        open_view_model(path)
    with pytest.raises(InputError, match="use one of"):
        build_view_model("srtt", {})


def test_published_files_are_told_by_their_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A small stand-in for LVSM's file: the .pt holds the published names below "model", and the loss network."""
    small = LvsmConfig(dim=16, heads=1, decoder_layers=2)
    monkeypatch.setitem(lvsm.PRESETS, "decoder-only", small)
    model = Lvsm(small)
    theirs = {}
    for name, tensor in model.state_dict().items():
        for published, ours in (
            ("transformer_input_layernorm.", "norm_in."),
            ("transformer_blocks.", "decoder."),
            ("image_tokenizer.1.", "image_tokens."),
            ("target_pose_tokenizer.1.", "target_tokens."),
            (".attn.to_qkv.", ".attn.qkv."),
            (".attn.fc.", ".attn.proj."),
            (".mlp.mlp.0.", ".mlp.fc1."),
            (".mlp.mlp.2.", ".mlp.fc2."),
            ("image_token_decoder.0.", "norm_out."),
            ("image_token_decoder.1.", "head."),
        ):
            name = name.replace(ours, published)
        theirs[name] = tensor
    path = tmp_path / "scene_decoder_only_256.pt"
    torch.save({"model": {**theirs, "loss_computer.x": torch.zeros(1)}, "fwdbwd_pass_step": 3}, path)
    assert open_view_model(path).identity() == model.identity()


def test_names_without_weights_say_where_they_come_from(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("SCENETX_WEIGHTS", str(tmp_path))
    for name, said in (
        ("lvsm", r"CC BY-NC-SA 4.0\): not on this machine"),
        ("srt", "page of stelzner/srt"),
        ("svsm", "train it, or give a file"),
        ("da3-small", "is a geometry model"),
        ("nonsense", "use one of"),
    ):
        with pytest.raises(InputError, match=said):
            open_view_model(name)
    assert "svsm-27m" in view_models()
    model = zoo.load_model("svsm-27m", None)
    assert isinstance(model, Svsm)
    assert model.config == svsm.PRESETS["27m"]


# --- rendering a scene ------------------------------------------------------------------------------------------------


def scene(n: int = 6, *, points: bool = True) -> Scene:
    cameras = ring(n, 40, 56, spread=1.2)
    pixels = (picture(cameras) * 255).round().to(torch.uint8)
    views = tuple(
        View(f"{i}.png", pixels[i], Original(f"{i}.png", 40, 56), cameras[i], held_out=i == 0) for i in range(n)
    )
    torch.manual_seed(0)
    cloud = Points(
        torch.rand(300, 3) * torch.tensor([2.0, 2.0, 0.1]) + torch.tensor([-1.0, -1.0, 1.4]),
        pixels[0, :15, :20].reshape(300, 3),
    )
    return Scene(views, points=cloud if points else None, posed_by="input")


@pytest.mark.parametrize("points", [True, False])
def test_a_scene_is_painted(points, tmp_path: Path):
    model = save_view_model(small_svsm(), tmp_path / "model.safetensors")
    files = render_path(
        scene(points=points), tmp_path / "out", PathSettings("input", frames=3, model=str(model), width=48, context=2)
    )
    assert len(files) == 3
    assert np.asarray(Image.open(files[0])).shape == (34, 48, 3)
    with pytest.raises(InputError, match="depth"):
        render_path(scene(), tmp_path / "out", PathSettings(model=str(model), depth=True))


def test_the_best_pictures_are_chosen():
    """Beside one of the pictures that one is shown; no picture twice; held-out pictures never."""
    painter = Painter(scene(), small_svsm(), PaintSettings(context=3, side=32))
    views = scene().training
    for index, view in enumerate(views):
        chosen = painter.choose(view.camera)
        assert index in chosen
        assert len(set(chosen)) == 3
    assert len(views) == 5
    everything = Painter(scene(), small_svsm(), PaintSettings(context=9, side=32))
    assert everything.choose(views[0].camera) == (0, 1, 2, 3, 4)


def test_pictures_that_look_away_are_not_shown():
    ours = scene()
    away = replace(ours.views[3], camera=turned(ours.views[3].camera))
    ours = replace(ours, views=(*ours.views[:3], away, *ours.views[4:]))
    painter = Painter(ours, small_svsm(), PaintSettings(context=4, side=32))
    assert 2 not in painter.choose(ours.views[1].camera)  # the third of the training views


def turned(camera: Cameras) -> Cameras:
    back = camera.world_from_cam.clone()
    back[:, :3, [0, 2]] *= -1
    return replace(camera, world_from_cam=back)


def test_states_are_encoded_once_a_choice():
    model = small_svsm()
    counted = []
    encode = model.encode
    model.encode = lambda views, frame=None: (counted.append(1), encode(views, frame))[1]  # type: ignore[method-assign]
    painter = Painter(scene(), model, PaintSettings(context=5, side=32))
    cameras = painter.size(ring(4, 40, 56), None)
    renders = painter(cameras)
    assert renders.rgb.shape == (4, 32, 44, 3)
    assert len(counted) == 1


def test_painters_refuse_what_they_cannot_paint():
    with pytest.raises(InputError, match="posed pictures"):
        Painter(Scene(()), small_svsm())
    with pytest.raises(InputError, match="latents"):
        Painter(scene(), Rust(RustConfig(replace(UNPOSED, dim=24, heads=2, conv_width=4, encoder_layers=1))))
    with pytest.raises(InputError, match="context"):
        Painter(scene(), small_svsm(), PaintSettings(context=0))
    assert len(landmarks(scene(points=False), 100)) == 6 * 4 * 25


# --- scores -----------------------------------------------------------------------------------------------------------


def test_published_ssim_by_brute_force():
    torch.manual_seed(0)
    a, b = torch.rand(13, 12, 3), torch.rand(13, 12, 3)
    x = np.arange(-5, 6)
    window = np.exp(-0.5 * (x / 1.5) ** 2)
    window = np.outer(window, window) / window.sum() ** 2
    found = []
    for channel in range(3):
        for row in range(3):
            for column in range(2):
                p, q = (z[row : row + 11, column : column + 11, channel].double().numpy() for z in (a, b))
                up, uq = (window * p).sum(), (window * q).sum()
                vp, vq = ((window * z * z).sum() - u * u for z, u in ((p, up), (q, uq)))
                vp, vq, vpq = (121 / 120 * v for v in (vp, vq, (window * p * q).sum() - up * uq))
                top = (2 * up * uq + 1e-4) * (2 * vpq + 9e-4)
                found.append(top / ((up**2 + uq**2 + 1e-4) * (vp + vq + 9e-4)))
    assert published_ssim(a, b) == pytest.approx(np.mean(found), abs=1e-9)
    assert published_ssim(a, b) != pytest.approx(ssim(a, b), abs=1e-6)
    assert published_ssim(a, a) == pytest.approx(1)
    with pytest.raises(ValueError, match="smaller"):
        published_ssim(a[:10], b[:10])


def test_published_psnr_clamps():
    a = torch.full((12, 12, 3), 0.5)
    assert published_psnr(a, a + 0.1) == pytest.approx(20, abs=1e-4)
    assert published_psnr(torch.ones(12, 12, 3), torch.full((12, 12, 3), 1.7)) == float("inf")


def random_vgg() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    trunk, channels = {}, 3
    widths = {0: 64, 2: 64, 5: 128, 7: 128, 10: 256, 12: 256, 14: 256}
    widths |= dict.fromkeys((17, 19, 21, 24, 26, 28), 512)
    for index, width in widths.items():
        scale = (2 / (9 * channels)) ** 0.5
        trunk[f"features.{index}.weight"] = scale * torch.randn(width, channels, 3, 3, generator=generator)
        trunk[f"features.{index}.bias"] = torch.zeros(width)
        channels = width
    sizes = enumerate((64, 128, 256, 512, 512))
    return trunk, {f"lin{i}.model.1.weight": torch.rand(1, c, 1, 1, generator=generator) / c for i, c in sizes}


def test_lpips_is_a_distance(tmp_path: Path):
    trunk, weighting = random_vgg()
    lpips = Lpips(trunk, weighting)
    a = torch.rand(33, 40, 3, generator=torch.Generator().manual_seed(1))
    assert lpips(a, a) == 0
    near, far = (lpips(a, (a + step * torch.randn(a.shape)).clamp(0, 1)) for step in (0.02, 0.3))
    assert 0 < near < far
    b = (a * 0.8).requires_grad_()
    lpips.distance(a[None], b[None]).sum().backward()
    assert b.grad is not None
    assert b.grad.isfinite().all()
    black = torch.zeros(1, 16, 16, 3, requires_grad=True)
    lpips.distance(black, black).sum().backward()
    assert black.grad is not None
    assert black.grad.isfinite().all()
    with pytest.raises(ValueError, match="16 px"):
        lpips(a[:15], a[:15])
    torch.save(trunk, tmp_path / "vgg16-397923af.pth")
    with pytest.raises(InputError, match=r"no vgg.pth .*PerceptualSimilarity"):
        load_lpips(tmp_path)
    torch.save(weighting, tmp_path / "vgg.pth")
    assert load_lpips(tmp_path)(a, a * 0.5) == pytest.approx(lpips(a, a * 0.5))
    (tmp_path / "vgg.pth").write_bytes(b"x")
    with pytest.raises(InputError, match="broken"):
        load_lpips(tmp_path)
    with pytest.raises(InputError, match=r"no features\.0\.weight"):
        Lpips({}, weighting)


def test_lpips_against_the_published_code():
    """Two numbers the published code gave (its lpips.py, a VGG-16 with weights by the rule of the goldens)."""
    import importlib.util

    path = Path(__file__).parents[2] / "shared/golden/weight_rule.py"
    if not path.is_file():
        pytest.skip("no weight rule beside the checkout")
    spec = importlib.util.spec_from_file_location("weight_rule", path)
    rule = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(rule)
    trunk, weighting = random_vgg()
    shapes = {name: tuple(tensor.shape) for name, tensor in {**trunk, **weighting}.items()}
    state = rule.deterministic_state_dict(shapes, 0)
    state = {n: x.abs() if n.startswith("lin") else 1.4 * x if n.endswith("weight") else x for n, x in state.items()}
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(2, 37, 50, 3, generator=generator)
    b = (a + 0.2 * torch.rand(2, 37, 50, 3, generator=generator)).clamp(0, 1)
    found = Lpips(state, state).distance(a, b)
    torch.testing.assert_close(found, torch.tensor([0.003029918, 0.002864944]), rtol=1e-4, atol=0)


# --- RealEstate10K ----------------------------------------------------------------------------------------------------


def clip_cameras(n: int = 5) -> tuple[torch.Tensor, Cameras]:
    """RealEstate10K rows (fx fy cx cy 0 0 + 3 x 4) and their cameras at 360 x 640."""
    cameras = ring(n, 360, 640, spread=0.4)
    K = torch.tensor([[320.0, 0, 320], [0, 320, 180], [0, 0, 1]]).repeat(n, 1, 1)
    cameras = replace(cameras, K=K)
    lens = torch.tensor([320 / 640, 320 / 360, 0.5, 0.5, 0, 0]).repeat(n, 1)
    return torch.cat([lens, cameras.cam_from_world[:, :3].flatten(1)], 1), cameras


def encoded(image: torch.Tensor) -> bytes:
    buffer = BytesIO()
    Image.fromarray((image * 255).round().to(torch.uint8).numpy()).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One scene ("aa") in the three layouts, a broken one ("bb": no baseline) in the chunks."""
    rows, cameras = clip_cameras()
    files = [encoded(image) for image in picture(cameras)]
    root = tmp_path_factory.mktemp("re10k")
    chunks = root / "chunks" / "test"
    chunks.mkdir(parents=True)
    images = [torch.from_numpy(np.frombuffer(file, np.uint8).copy()) for file in files]
    still = rows[:1].repeat(5, 1)
    scenes = [{"key": k, "url": "", "cameras": c, "images": images} for k, c in (("aa", rows), ("bb", still))]
    torch.save(scenes, chunks / "000000.torch")
    (chunks / "index.json").write_text(json.dumps({"aa": "000000.torch", "bb": "000000.torch"}))
    texts = root / "texts" / "test"
    (texts / "aa").mkdir(parents=True)
    lines = ["https://www.youtube.com/watch?v=x"]
    for index, (row, file) in enumerate(zip(rows, files, strict=True)):
        lines.append(" ".join([str(1000 * index), *(f"{x:.9f}" for x in row.tolist())]))
        (texts / "aa" / f"{1000 * index}.png").write_bytes(file)
    (texts / "aa.txt").write_text("\n".join(lines))
    listed = root / "listed"
    (listed / "metadata").mkdir(parents=True)
    (listed / "images" / "aa").mkdir(parents=True)
    frames = []
    for index, file in enumerate(files):
        (listed / "images" / "aa" / f"{index:05d}.png").write_bytes(file)
        frames.append(
            {
                "image_path": f"/elsewhere/images/aa/{index:05d}.png",
                "fxfycxcy": [320.0, 320.0, 320.0, 180.0],
                "w2c": cameras.cam_from_world[index].tolist(),
            }
        )
    (listed / "metadata" / "aa.json").write_text(json.dumps({"scene_name": "aa", "frames": frames}))
    (listed / "full_list.txt").write_text("metadata/aa.json\n")
    return {"chunks": root / "chunks", "texts": root / "texts", "listed": listed}


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("index") / "evaluation_index_re10k.json"
    entry = {"context": [0, 4], "target": [1, 2, 3]}
    path.write_text(json.dumps({"aa": {**entry, "overlap": 0.6}, "bb": entry, "cc": None, "dd": entry}))
    return path


def test_all_layouts_are_one_scene(layouts):
    clips = [open_clips(folder).clip("aa") for folder in layouts.values()]
    for clip in clips[1:]:
        a, b = framed(clips[0], (0, 3), 64), framed(clip, (0, 3), 64)
        torch.testing.assert_close(a[0].world_from_cam, b[0].world_from_cam, rtol=0, atol=1e-6)
        torch.testing.assert_close(a[0].K, b[0].K, rtol=0, atol=1e-4)
        assert torch.equal(a[1], b[1])


def test_the_cut_is_seen_by_the_cut_camera(layouts):
    """The published K: pixels of the cut look where the same pixels of the picture look."""
    cameras, _ = framed(open_clips(layouts["chunks"]).clip("aa"), (1,), 256)
    torch.testing.assert_close(
        cameras.K[0], torch.tensor([[227.5, 0, 128], [0, 227.5556, 128], [0, 0, 1]]).double(), rtol=0, atol=1e-3
    )
    image = torch.zeros(360, 640, 3, dtype=torch.uint8)
    image[178:182, 318:322] = 255
    small, cut = resized_and_cut(image, 256)
    assert small.shape == (256, 256, 3)
    assert cut == (0, 99)
    bright = (small[..., 0] > 60).nonzero().double().mean(0)
    assert abs(float(bright[0]) + 0.5 - 128) < 0.6
    assert abs(float(bright[1]) + 0.5 - 128) < 1.1  # odd margins move the cut by half a pixel, as published


def test_the_protocol_end_to_end(layouts, index, tmp_path: Path):
    model = small_svsm()
    scores = evaluate_re10k(layouts["chunks"], index, model, settings=Re10kSettings(side=32))
    assert (scores.scenes, scores.pictures, scores.lpips) == (1, 3, None)
    assert set(scores.skipped) == {"bb", "dd"}
    assert "baseline" in scores.skipped["bb"]
    clip = open_clips(layouts["chunks"]).clip("aa")
    context, shown = framed(clip, (0, 4), 32)
    target, truth = framed(clip, (1, 2, 3), 32)
    with torch.no_grad():
        painted = model.decode(model.encode(Views(shown, context)), target)
    expected = np.mean([published_psnr(a, b) for a, b in zip(truth, painted, strict=True)])
    assert scores.psnr == pytest.approx(expected, abs=1e-4)
    saved = save_view_model(model, tmp_path / "model.safetensors")
    words = ["evaluate", str(layouts["texts"]), "--protocol", "re10k", "--index", str(index), "--model", str(saved)]
    main([*words, "-o", str(tmp_path / "scores.json")])
    written = json.loads((tmp_path / "scores.json").read_text())
    assert written["pictures"] == 3
    assert written["lpips"] is None
    with pytest.raises(SystemExit) as stopped:
        main(words[:-2])
    assert stopped.value.code == 2


def test_lvsm_is_scored_in_its_authors_frame(layouts, index):
    torch.manual_seed(0)
    model = Lvsm(LvsmConfig(dim=16, heads=1, decoder_layers=1)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(4)
    scores = [
        evaluate_re10k(layouts["chunks"], index, model, settings=Re10kSettings(side=32, published_frame=published))
        for published in (True, False)
    ]
    assert scores[0].psnr != scores[1].psnr
    assert "as LVSM's authors did" in scores[0].protocol
    assert "context views only" in scores[1].protocol
    context, _ = framed(open_clips(layouts["chunks"]).clip("aa"), (0, 4), 32)
    assert model.frame_of(context, 1).scale == mean_frame(context).scale


def test_bad_indices_and_data_are_named(layouts, index, tmp_path: Path):
    bad = tmp_path / "index.json"
    for text, said in (
        ("{", "evaluation_index"),
        ("[]", "not a list of scenes"),
        ('{"aa": null}', "names no scene"),
        ('{"aa": {"context": [0]}}', "no context and target"),
        ('{"aa": {"context": [0, -1], "target": [1]}}', "no context and target"),
    ):
        bad.write_text(text)
        with pytest.raises(InputError, match=said):
            read_index(bad)
    with pytest.raises(InputError, match="not there"):
        open_clips(tmp_path / "nowhere")
    with pytest.raises(InputError, match="no RealEstate10K"):
        open_clips(layouts["chunks"].parent / "texts" / "test" / "aa")
    bad.write_text('{"zz": {"context": [0, 1], "target": [1]}}')
    with pytest.raises(InputError, match="none of the 1 scenes"):
        evaluate_re10k(layouts["chunks"], bad, small_svsm())
    bad.write_text('{"aa": {"context": [0, 9], "target": [1]}}')
    with pytest.raises(InputError, match="frame 9 of 5"):
        evaluate_re10k(layouts["chunks"], bad, small_svsm())


def test_hostile_chunks_are_refused(layouts, tmp_path: Path):
    folder = tmp_path / "test"
    folder.mkdir()
    (folder / "index.json").write_text(json.dumps({"aa": "../elsewhere.torch"}))
    with pytest.raises(InputError, match="beside the index"):
        open_clips(tmp_path).clip("aa")
    (folder / "index.json").write_text(json.dumps({"aa": "0.torch"}))
    (folder / "0.torch").write_bytes(b"not a chunk")
    with pytest.raises(InputError, match="broken"):
        open_clips(tmp_path).clip("aa")
    torch.save([{"key": "bb"}], folder / "0.torch")
    with pytest.raises(InputError, match="does not hold aa"):
        open_clips(tmp_path).clip("aa")
