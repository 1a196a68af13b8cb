import json
import pickle

import pytest
import torch
from torch import nn

import tweed as tw
from tweed.core.denoiser import InterpolantDenoiser
from tweed.errors import CheckpointError, InputError
from tweed.training import checkpoint, files, from_config, to_config
from tweed.training.plain import process_from_config, target_from_config

PROCESSES = [kind() for name, kind in tw.processes.BY_NAME.items() if name != "FromBetas"]
PROCESSES += [tw.processes.FromBetas.cosine(50, zero_terminal_snr=True), tw.processes.VE(0.02, 348.0)]
PROCESSES += [tw.processes.Interpolant("trigonometric", "quadratic", 0.5), tw.processes.Interpolant(one_sided=True)]


def small(seed=1, process=None, target=None, endpoint=0, **options):
    network = tw.nets.build({"name": "mlp", "dim": 2, "width": 16, "depth": 1, "endpoint_channels": endpoint}, seed)
    return tw.NetworkDenoiser(network, process or tw.processes.VP(), target or tw.targets.V(), event=(2,), **options)


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
def test_every_process_comes_back(process, tmp_path):
    assert process_from_config(json.loads(json.dumps(to_config(process)))) == process
    denoiser = small(process=process, target=tw.targets.Velocity())
    back = tw.load(tw.save(denoiser, tmp_path / "model"))
    assert back.process == process


@pytest.mark.parametrize("target", [kind() for kind in tw.targets.BY_NAME.values()] + [tw.targets.EDM(0.7)], ids=repr)
def test_every_target_comes_back_with_the_same_answers(target, tmp_path):
    assert target_from_config(json.loads(json.dumps(to_config(target)))) == target
    # Two belong to a process with an endpoint.
    own = {tw.targets.MeanRevertingV(): tw.processes.MeanReverting(), tw.targets.Resnoise(): tw.processes.Resfusion()}
    given = {"y": tw.random.normal((5, 2), 1)} if target in own else {}
    denoiser = small(
        process=own.get(target), target=target, endpoint=2 if given else 0, input_scale="unit", data_std=0.6
    )
    with torch.no_grad():
        for i, p in enumerate(denoiser.parameters()):
            p.copy_(tw.random.normal((p.numel(),), i).reshape(p.shape) * 0.3)
    back = tw.load(tw.save(denoiser, tmp_path, meta={"note": "x"}))
    assert (back.target, back.event, back.meta) == (target, (2,), {"note": "x"})
    assert not back.training
    x, t = tw.random.normal((5, 2), 0), torch.linspace(0.1, 0.9, 5)
    assert torch.equal(back(x, t, **given).x0, denoiser(x, t, **given).x0)


def test_time_inputs_and_interpolant_pairs_come_back(tmp_path):
    betas = tw.processes.FromBetas.linear(20)
    for time in ("time", "log_snr", "c_noise", "index"):
        assert tw.load(tw.save(small(process=betas, time=time), tmp_path)).time == time
    nets = [tw.nets.build({"name": "mlp", "dim": 2, "width": 8, "depth": 1}, s) for s in (1, 2)]
    pair = InterpolantDenoiser(*nets, tw.processes.Interpolant(latent="sine"))
    back = tw.load(tw.save(pair, tmp_path))
    assert isinstance(back, InterpolantDenoiser)
    for a, b in zip(pair.state_dict().values(), back.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert len(list(tmp_path.glob("*.safetensors"))) == 1


@pytest.mark.parametrize("dtype", ["float16", torch.bfloat16])
def test_weights_stored_in_half_are_returned_in_float32(dtype, tmp_path):
    denoiser = small()
    full = tw.save(denoiser, tmp_path / "full")
    half = tw.save(denoiser, tmp_path / "half", dtype=dtype)
    size = {f: next(f.glob("*.safetensors")).stat().st_size for f in (full, half)}
    assert size[half] < 0.65 * size[full]
    kind = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    for a, b in zip(denoiser.parameters(), tw.load(half).parameters(), strict=True):
        assert b.dtype == torch.float32
        assert torch.equal(a.to(kind).float(), b)


def weights(folder):
    return next(folder.glob("model-*.safetensors"))


def edit(folder, change):
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def rewrite(folder, change):
    """Replaces the weights by changed ones, with a config.json that names them rightly."""
    tensors = dict(files.parse_tensors(weights(folder).read_bytes(), weights(folder)))
    change(tensors)
    entry = files.write_tensors(folder, "model", tensors)
    edit(folder, lambda config: config.update(weights=entry))


CHANGES = {
    "not JSON": (lambda f: (f / "config.json").write_text("{"), "config.json.*JSON"),
    "not an object": (lambda f: (f / "config.json").write_text("[1]"), "config.json.*list"),
    "format": (lambda f: edit(f, lambda c: c.update(format="other")), "format"),
    "version": (lambda f: edit(f, lambda c: c.update(version=99)), "version is 99"),
    "entry": (lambda f: edit(f, lambda c: c.update(wieghts={})), "wieghts"),
    "no denoiser": (lambda f: edit(f, lambda c: c.pop("denoiser")), "denoiser"),
    "kind": (lambda f: edit(f, lambda c: c["denoiser"].update(kind="X")), "kind"),
    "process": (lambda f: edit(f, lambda c: c["denoiser"]["process"].update(name="Cosin")), "'Cosine'"),
    "process field": (lambda f: edit(f, lambda c: c["denoiser"]["process"].update(beta_mxx=1)), "beta_max"),
    "process value": (lambda f: edit(f, lambda c: c["denoiser"]["process"].update(beta_max="20")), "beta_max"),
    "target": (lambda f: edit(f, lambda c: c["denoiser"].update(target=3)), "target"),
    "network": (lambda f: edit(f, lambda c: c["denoiser"]["network"].update(name="mpl")), "mlp"),
    "event": (lambda f: edit(f, lambda c: c["denoiser"].update(event=[2.5])), "event"),
    "outside": (lambda f: edit(f, lambda c: c["weights"].update(file="../x.safetensors")), "same folder"),
    "pickle named": (lambda f: edit(f, lambda c: c["weights"].update(file="model.bin")), "safetensors"),
    "gone": (lambda f: weights(f).unlink(), "cannot be read"),
    "truncated": (lambda f: weights(f).write_bytes(weights(f).read_bytes()[:-100]), r"model-.*whole"),
    "empty": (lambda f: weights(f).write_bytes(b""), r"model-.*whole"),
    "header": (lambda f: weights(f).write_bytes(b"\xff" * 64), r"model-.*whole"),
    "bit": (lambda f: weights(f).write_bytes(weights(f).read_bytes()[:-1] + b"\x7f"), "sha256"),
    "pickle inside": (lambda f: weights(f).write_bytes(pickle.dumps({"a": 1})), "pickle"),
    "missing": (lambda f: rewrite(f, lambda t: t.pop(sorted(t)[0])), "is missing"),
    "unexpected": (lambda f: rewrite(f, lambda t: t.update(more=torch.zeros(2))), "'more'"),
    "shape": (lambda f: rewrite(f, lambda t: t.update({sorted(t)[0]: torch.zeros(7, 3)})), r"shape \(7, 3\)"),
    "type": (lambda f: rewrite(f, lambda t: t.update({sorted(t)[0]: t[sorted(t)[0]].long()})), "int64"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_damage_is_named(name, tmp_path):
    folder = tw.save(small(), tmp_path / "model")
    change, message = CHANGES[name]
    change(folder)
    with pytest.raises(CheckpointError, match=message):
        tw.load(folder)


class Bomb:
    def __reduce__(self):
        return (exec, ("raise SystemExit('a pickle ran')",))


@pytest.mark.parametrize("ending", ["bin", "pt", "ckpt", "pth", "pkl"])
def test_pickles_are_refused_and_never_run(ending, tmp_path):
    (tmp_path / f"pytorch_model.{ending}").write_bytes(pickle.dumps(Bomb()))
    for name in (tmp_path, tmp_path / f"pytorch_model.{ending}"):
        with pytest.raises(CheckpointError, match="safetensors"):
            tw.load(name)


def test_names_that_lead_nowhere(tmp_path, monkeypatch):
    with pytest.raises(CheckpointError, match=r"bundled model.*owner/name"):
        tw.load("no-such-model")
    with pytest.raises(CheckpointError, match="there is no such file"):
        tw.load(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)

    def offline(*args, **kwargs):
        raise OSError("the Hub cannot be reached")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(CheckpointError, match=r"bundled.*folder.*Hub id 'some/model'.*cannot be reached"):
        tw.load("some/model")


def test_hub_upload_and_download_go_through_its_client(tmp_path, monkeypatch):
    import shutil

    seen = {}

    class Api:
        def __init__(self, token=None):
            seen["token"] = token

        def create_repo(self, repo, private, exist_ok):
            seen["repo"] = (repo, private, exist_ok)

        def upload_folder(self, repo_id, folder_path, commit_message, delete_patterns):
            shutil.copytree(folder_path, tmp_path / "hub")
            return "https://hub/commit/1"

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **options: str(tmp_path / "hub"))
    denoiser = small()
    assert tw.training.push_to_hub(denoiser, "me/model", private=True, token="t") == "https://hub/commit/1"
    assert seen == {"token": "t", "repo": ("me/model", True, True)}
    for a, b in zip(denoiser.parameters(), tw.load("me/model").parameters(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(InputError, match="owner/name"):
        tw.training.push_to_hub(denoiser, "model")


@pytest.mark.parametrize("place", ["write_json", "write_tensors", "replace"])
def test_an_interrupted_save_leaves_the_old_checkpoint(place, tmp_path, monkeypatch):
    folder, first = tmp_path / "model", small(1)
    tw.save(first, folder)

    def fail(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("os.replace" if place == "replace" else f"tweed.training.files.{place}", fail)
        with pytest.raises(KeyboardInterrupt):
            tw.save(small(2), folder)
    for a, b in zip(first.parameters(), tw.load(folder).parameters(), strict=True):
        assert torch.equal(a, b)
    assert not list(folder.glob("*.tmp"))
    tw.save(small(3), folder)
    assert len(list(folder.iterdir())) == 2


def test_what_cannot_be_saved_says_why(tmp_path):
    plain = tw.NetworkDenoiser(nn.Linear(2, 2), tw.processes.VP(), tw.targets.V())
    with pytest.raises(InputError, match="no configuration"):
        tw.save(plain, tmp_path)
    with pytest.raises(InputError, match="expected a NetworkDenoiser"):
        tw.save(tw.FunctionDenoiser(lambda x, t: x, tw.processes.VP()), tmp_path)
    with pytest.raises(InputError, match="dtype"):
        tw.save(small(), tmp_path, dtype="int8")
    with pytest.raises(InputError, match="meta"):
        tw.save(small(), tmp_path / "m", meta={"a": object()})
    assert not (tmp_path / "m" / "config.json").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        tw.save(small(), tmp_path / "file")
    assert checkpoint.bundled() == sorted(checkpoint.bundled())


def test_plain_values_name_their_mistakes():
    known = tw.processes.BY_NAME
    assert from_config("RectifiedFlow", known) == tw.processes.RectifiedFlow()
    for value, message in (
        ({"name": "VP", "beta_mni": 1.0}, "beta_min"),
        ({"name": "VP", "beta_min": "low"}, r"p\.beta_min: 'low'.*float"),
        ({"name": "VP", "beta_min": True}, "True"),
        ({"name": "VP", "beta_min": -1.0}, "0 < beta_min"),
        ({"name": "Residual", "residual": "averag"}, "average"),
        ({"name": "FromBetas"}, "betas"),
        ({"beta_min": 1.0}, "name"),
        (7, "table"),
    ):
        with pytest.raises(InputError, match=message):
            from_config(value, known, "p")
