from __future__ import annotations

import os
import pickle
import subprocess
import sys
import warnings
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

import ribsr
from ribsr import CheckpointError


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
    fails(path, "not a PyTorch checkpoint")
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
    code = "import sys, ribsr, ribsr.configs; ribsr.config('sst+', 4); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
