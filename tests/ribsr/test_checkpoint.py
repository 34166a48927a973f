from __future__ import annotations

import json
import os
import pickle
import stat
import subprocess
import sys
import warnings
from dataclasses import asdict, replace

import pytest
import torch
from safetensors.torch import save_file

import ribsr
from ribsr import CheckpointError, configs
from ribsr.base.errors import RibsrError
from ribsr.checkpoint import CONFIG_KEY


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    light = ribsr.config("sst-light")
    return ribsr.build(replace(light, name="small", blocks=1, windows=(8,), heads=(3,), ranks=(16,)))


@pytest.fixture(scope="module")
def light():
    torch.manual_seed(0)
    return ribsr.build(ribsr.config("sst-light"))


def fails(path, *phrases, **kwargs):
    with pytest.raises(CheckpointError) as error:
        ribsr.load(path, **kwargs)
    text = str(error.value)
    assert "\n" not in text
    assert str(path) in text
    for phrase in phrases:
        assert phrase in text


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_own_files_carry_their_configuration(tmp_path, model, suffix):
    path = tmp_path / f"x2{suffix}"
    ribsr.save(model, path)
    loaded = ribsr.load(path)
    assert loaded.config == model.config
    assert not loaded.training
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_file_that_another_program_wrote_again_keeps_its_configuration(tmp_path, model, suffix):
    ribsr.save(model, tmp_path / "x2.pt")
    tensors = torch.load(tmp_path / "x2.pt", weights_only=True)["params"]
    write(tmp_path / f"again{suffix}", tensors)
    assert ribsr.load(tmp_path / f"again{suffix}").config == model.config


@pytest.mark.parametrize(
    "packed",
    [
        torch.zeros(3),
        torch.zeros(3, 3, dtype=torch.uint8),
        torch.full((3,), 255, dtype=torch.uint8),
        torch.zeros(2**17, dtype=torch.uint8),
        torch.tensor(list(b"{"), dtype=torch.uint8),
        torch.tensor(list(b"[1]"), dtype=torch.uint8),
    ],
)
def test_a_configuration_among_the_tensors_that_is_none_is_refused(tmp_path, model, packed):
    write(tmp_path / "x2.safetensors", {**model.state_dict(), CONFIG_KEY: packed}, version=2)
    fails(tmp_path / "x2.safetensors", "config")


@pytest.mark.parametrize("name", ribsr.CONFIGS)
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_every_model_loads_from_the_authors_form(tmp_path, name, scale):
    with torch.device("meta"):
        shapes = ribsr.build(ribsr.config(name, scale)).state_dict()
    params = {key: torch.zeros(value.shape, dtype=torch.float16) for key, value in shapes.items()}
    torch.save({"params": params}, tmp_path / "net.pth")
    loaded = ribsr.load(tmp_path / "net.pth", model=name)
    assert loaded.config == ribsr.config(name, scale)
    assert {value.dtype for value in loaded.state_dict().values()} == {torch.float32}


def test_ema_weights_are_preferred(tmp_path, light):
    params = light.state_dict()
    ema = {key: value + 1 for key, value in params.items()}
    torch.save({"params": params, "params_ema": ema}, tmp_path / "net.pth")
    loaded = ribsr.load(tmp_path / "net.pth", model="sst-light")
    assert torch.equal(loaded.state_dict()["proj.bias"], ema["proj.bias"])


def test_the_authors_files_are_never_guessed(tmp_path, light):
    torch.save({"params": light.state_dict()}, tmp_path / "net.pth")
    fails(tmp_path / "net.pth", "--model sst-light or --model sst-light+", "cannot be read from weights")
    save_file(light.state_dict(), tmp_path / "net.safetensors")
    fails(tmp_path / "net.safetensors", "--model sst-light or --model sst-light+")
    assert ribsr.load(tmp_path / "net.safetensors", model="sst-light+").config.windows[-1] == 96


def test_option_yaml_names_the_model(tmp_path, light, published):
    import yaml

    torch.save({"params": light.state_dict()}, tmp_path / "net.pth")
    option = tmp_path / "SSTlight_Plus_X2.yaml"
    option.write_text(yaml.safe_dump({"network_g": published["SSTlight_Plus_X2"]["config"]}))
    assert ribsr.load(tmp_path / "net.pth", config=option).config == ribsr.config("sst-light+")
    wrong = {**published["SSTlight_Plus_X2"]["config"], "upscaling_factor": 4}
    option.write_text(yaml.safe_dump({"network_g": wrong}))
    fails(tmp_path / "net.pth", "upsampler.up_conv.weight", "another scale", config=option)


def test_own_files_refuse_another_model(tmp_path, light):
    ribsr.save(light, tmp_path / "x2.pt")
    assert ribsr.load(tmp_path / "x2.pt", model="sst-light").config.name == "sst-light"
    fails(tmp_path / "x2.pt", "was made as sst-light x2", "sst-light+ x2", model="sst-light+")


def test_wrong_weights_name_the_key(tmp_path, light):
    path = tmp_path / "net.pth"

    def saved(change):
        params = dict(light.state_dict())
        change(params)
        torch.save({"params": params}, path)

    saved(lambda params: params.pop("body.1.2.attn.to_q"))
    fails(path, "missing", "body.1.2.attn.to_q", model="sst-light")
    saved(lambda params: params.update({"extra.weight": torch.zeros(1)}))
    fails(path, "do not belong", "extra.weight", model="sst-light")
    saved(lambda params: params.update({"proj.bias": torch.zeros(7)}))
    fails(path, "proj.bias is (7,)", "needs (48,)", model="sst-light")
    saved(lambda params: params.update({"proj.bias": torch.full((48,), float("nan"))}))
    fails(path, "proj.bias holds NaN", model="sst-light")
    saved(lambda params: params.update({"proj.bias": torch.zeros(48, dtype=torch.int64)}))
    fails(path, "proj.bias is torch.int64", model="sst-light")
    saved(lambda params: params.update({"upsampler.up_conv.weight": torch.zeros(13, 48, 3, 3)}))
    fails(path, "13 channels", "x2: 12, x3: 27, x4: 48", model="sst-light")
    saved(lambda params: params.pop("upsampler.up_conv.weight"))
    fails(path, "missing key upsampler.up_conv.weight", model="sst-light")
    saved(lambda params: None)
    fails(path, "fits sst at no scale", model="sst")
    fails(path, "missing", "esc-rib x2", model="esc-rib")
    with pytest.raises(CheckpointError, match="no model is called 'edsr'; choose one of sst-light"):
        ribsr.load(path, model="edsr")
    fails(path, "not both", model="sst", config=ribsr.config("sst"))


def test_safetensors_are_read_under_any_name(tmp_path, light):
    ribsr.save(light, tmp_path / "net.safetensors")
    (tmp_path / "net.safetensors").rename(tmp_path / "net.pt")
    state = ribsr.load(tmp_path / "net.pt").state_dict()
    assert state.keys() == light.state_dict().keys()
    assert all(torch.equal(state[key], value) for key, value in light.state_dict().items())


def test_what_is_no_checkpoint_is_refused(tmp_path):
    path = tmp_path / "x.pt"
    fails(path, "no such file")
    path.write_bytes(b"not a checkpoint")
    fails(path, "not a PyTorch checkpoint")
    path.write_bytes(b"")
    fails(path, "is empty")
    torch.save([1, 2], path)
    fails(path, "holds a list")
    torch.save({"epoch": 3}, path)
    fails(path, "no weights found", "epoch")
    torch.save({"ribsr": 99, "params": {}}, path)
    fails(path, "own format 99", "update ribsr")
    torch.save({"ribsr": 1, "params": {"a": torch.zeros(1)}}, path)
    fails(path, "configuration is missing")
    (tmp_path / "x.safetensors").write_bytes(b"12345678 no")
    fails(tmp_path / "x.safetensors", "not a safetensors file")


def test_a_cut_short_file_is_refused(tmp_path, model):
    path = tmp_path / "x2.pt"
    ribsr.save(model, path)
    path.write_bytes(path.read_bytes()[:-1000])
    fails(path, "damaged")


def own(model):
    """What own files hold: configuration as JSON values, weights."""
    return json.loads(json.dumps(configs.to_dict(model.config))), dict(model.state_dict())


def write(path, params, config=None, version=None):
    """The same contents in the format that the name says; text as the configuration is written as it is."""
    text = config if isinstance(config, str) or config is None else json.dumps(config)
    if version == 2 and text is not None:
        params, config, text = {**params, CONFIG_KEY: torch.tensor(list(text.encode()), dtype=torch.uint8)}, None, None
    if path.suffix == ".safetensors":
        given = {"ribsr": version if version is None else str(version), "config": text}
        save_file(params, path, metadata={key: value for key, value in given.items() if value is not None} or None)
    else:
        given = {"ribsr": version, "config": config}
        torch.save({**{key: value for key, value in given.items() if value is not None}, "params": params}, path)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize(
    ("version", "change", "phrase"),
    [
        (3, {}, "own format 3, this version reads 1 and 2; update ribsr"),
        (1, None, "its configuration is missing"),
        (2, None, "its configuration is missing"),
        (2, {"blocks": 2.5}, "blocks must be a whole number, got 2.5"),
        (2, {"architecture": ["sst"]}, "'architecture' must be sst or esc-rib, got ['sst']"),
        (1, {"blocks": 2.5}, "blocks must be a whole number, got 2.5"),
        (1, {"expansion": float("nan")}, "expansion must be a number, got nan"),
        (1, {"windows": "8"}, "windows must be a list of whole numbers, got '8'"),
        (1, {"upsampler": 3}, "upsampler must be direct or pixelshuffle, got 3"),
        (1, {"architecture": ["sst"]}, "'architecture' must be sst or esc-rib, got ['sst']"),
        (1, {"colour": 1}, "unknown field 'colour'"),
        (1, {"heads": [5]}, "5 heads do not divide 48 channels"),
    ],
)
def test_all_formats_are_checked_alike(tmp_path, model, suffix, version, change, phrase):
    config, params = own(model)
    write(tmp_path / f"a{suffix}", params, None if change is None else {**config, **change}, version)
    fails(tmp_path / f"a{suffix}", phrase)


@pytest.mark.parametrize(
    ("field", "value"),
    [("dim", 10**30), ("scale", 10**12), ("ranks", [10**20]), ("windows", [10**20]), ("rib_freqs", 10**9)],
)
def test_sizes_that_would_fill_the_memory_are_refused(tmp_path, model, field, value):
    path = tmp_path / "x2.safetensors"
    config = {**configs.to_dict(model.config), field: value}
    save_file(dict(model.state_dict()), path, metadata={"ribsr": "1", "config": json.dumps(config)})
    with pytest.raises(CheckpointError, match=rf"{field} must be \d+ to \d+, got"):
        ribsr.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda value: value.to(torch.float8_e4m3fn), "is torch.float8_e4m3fn, weights must be"),
        (lambda value: value.to_sparse(), "holds no plain values"),
        (lambda value: value.to("meta"), "holds no plain values"),
    ],
)
def test_weights_that_are_no_plain_numbers_are_refused(tmp_path, model, change, message):
    params = {key: change(value.detach()) for key, value in model.state_dict().items()}
    torch.save({"ribsr": 1, "config": configs.to_dict(model.config), "params": params}, tmp_path / "x2.pt")
    with pytest.raises(CheckpointError, match=message):
        ribsr.load(tmp_path / "x2.pt")


def test_the_format_of_a_later_version_is_told_whatever_its_configuration_is(tmp_path, model):
    path = tmp_path / "x2.safetensors"
    save_file(dict(model.state_dict()), path, metadata={"ribsr": "3", "config": "{new"})
    with pytest.raises(CheckpointError, match="own format 3, this version reads 1 and 2; update ribsr"):
        ribsr.load(path)


def test_a_broken_configuration_in_safetensors(tmp_path, model):
    _, params = own(model)
    for text, phrase in (("{", "its configuration is not JSON"), ("[" * 99999, "not JSON"), ("[1]", "is missing")):
        write(tmp_path / "a.safetensors", params, text, 1)
        fails(tmp_path / "a.safetensors", phrase)


def test_own_files_without_weights(tmp_path, model):
    config, _ = own(model)
    torch.save({"ribsr": 1, "config": config}, tmp_path / "a.pt")
    fails(tmp_path / "a.pt", "no weights found", "ribsr, config")
    write(tmp_path / "a.safetensors", {}, config, 1)
    fails(tmp_path / "a.safetensors", "no weights found")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".pth"])
def test_names_of_distributed_training(tmp_path, model, suffix):
    _, params = own(model)
    path = tmp_path / f"a{suffix}"
    prefixed = {f"module.{key}": value for key, value in params.items()}
    write(path, prefixed)
    assert ribsr.load(path, config=model.config).state_dict().keys() == params.keys()
    write(path, {**prefixed, "proj.bias": params["proj.bias"].clone()})
    fails(path, "holds proj.bias twice, once as module.proj.bias", config=model.config)


def test_keys_that_are_no_names(tmp_path, model):
    _, params = own(model)
    torch.save({"params": {**params, 3: torch.zeros(1)}}, tmp_path / "a.pth")
    fails(tmp_path / "a.pth", "the key 3 is no name of weights", config=model.config)


def test_files_of_earlier_versions_load(tmp_path, model):
    """As 0.1.0 wrote them: tuples in torch's format, whole numbers for the expansion."""
    config = {"architecture": "sst", **asdict(replace(model.config, expansion=2))}
    assert isinstance(config["windows"], tuple)
    params = ribsr.build(replace(model.config, expansion=2)).state_dict()
    torch.save({"ribsr": 1, "config": config, "params": params}, tmp_path / "a.pt")
    save_file(params, tmp_path / "a.safetensors", metadata={"ribsr": "1", "config": json.dumps(config)})
    for suffix in (".pt", ".safetensors"):
        assert ribsr.load(tmp_path / f"a{suffix}").config == replace(model.config, expansion=2)


@pytest.mark.skipif(os.name != "posix", reason="POSIX permissions")
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_the_umask_decides_who_may_read(tmp_path, model, suffix):
    before = os.umask(0o077)
    try:
        ribsr.save(model, tmp_path / f"a{suffix}")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / f"a{suffix}").stat().st_mode) == 0o600


class Attack:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (self.target,)


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_a_file_that_would_execute_code_is_refused_and_does_not(tmp_path, how):
    path, target = tmp_path / "evil.pth", str(tmp_path / "executed")
    if how == "torch":
        torch.save({"params": Attack(target)}, path)
    else:
        path.write_bytes(pickle.dumps({"params": Attack(target)}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of the pickle's protocol
        fails(path, "execute code")
    assert not os.path.exists(target)


def test_saving_leaves_the_old_file_when_it_fails(tmp_path, model, monkeypatch):
    path = tmp_path / "x2.pt"
    ribsr.save(model, path)
    before = path.read_bytes()

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("ribsr.checkpoint.torch.save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ribsr.save(model, path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_importing_ribsr_imports_no_torch():
    code = (
        "import importlib, pkgutil, sys, ribsr, ribsr.configs, ribsr.base\n"
        "ribsr.config('sst+', 4)\n"
        "assert 'numpy' not in sys.modules, 'ribsr is instant'\n"
        "for module in pkgutil.iter_modules(ribsr.base.__path__, 'ribsr.base.'):\n"
        "    importlib.import_module(module.name)\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_checkpoint_errors_are_ours_and_value_errors():
    assert issubclass(CheckpointError, RibsrError)
    assert issubclass(CheckpointError, ValueError)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blocks": 900}, "900 layers of small x2 .* cannot be made of"),
        ({"blocks": 10**9}, "blocks must be 1 to 1000, got 1000000000"),
        ({"windows": [20000, 16], "heads": [3, 3], "ranks": [16, 16]}, "windows must be 1 to 1024"),
        ({"windows": [1024]}, "1 blocks with windows .* too large"),
        ({"blocks": 400, "windows": [64]}, "too large"),
        ({"dim": 60_000}, "1 layers of 60000 channels.* too large"),
        ({"name": "../a"}, "name must be one that a file can have"),
        ({"name": "a\x1b[2J"}, "name must be text"),
    ],
)
def test_what_would_fill_the_memory_is_refused_before_it_is_built(tmp_path, model, monkeypatch, change, message):
    config, params = own(model)
    write(tmp_path / "a.pt", params, {**config, **change}, 1)
    monkeypatch.setattr("ribsr.checkpoint.build", lambda config: pytest.fail("was built"))
    with pytest.raises(CheckpointError, match=message):
        ribsr.load(tmp_path / "a.pt")
