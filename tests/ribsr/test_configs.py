from __future__ import annotations

import json
from dataclasses import replace

import pytest

import ribsr
from ribsr import configs


def test_own_json_round_trips(tmp_path):
    for name in ribsr.CONFIGS:
        config = ribsr.config(name, 3)
        path = tmp_path / "own.json"
        path.write_text(json.dumps(configs.to_dict(config)))
        assert configs.read(path) == config


def test_authors_yaml_gives_the_published_configuration(tmp_path, published):
    import yaml

    for name, entry in published.items():
        if name.startswith("_"):
            continue
        path = tmp_path / "option.yml"
        path.write_text(yaml.safe_dump({"scale": 2, "network_g": entry["config"]}))
        config = configs.read(path)
        assert config == ribsr.config(config.name, 2), name
        assert config.name in ribsr.CONFIGS


def test_windows_tell_sst_from_sst_plus(published):
    names = {key: configs.from_authors(published[key]["config"], key).name for key in ("SST_X2", "SST_Plus_X2")}
    assert names == {"SST_X2": "sst", "SST_Plus_X2": "sst+"}


def test_layers_shift_only_where_all_windows_are_equal():
    cyclic = ribsr.config("sst-light")
    assert isinstance(cyclic, ribsr.SSTConfig)
    assert cyclic.shifts == (0,) * 6
    equal = replace(cyclic, windows=(16,) * 6)
    assert equal.shifts == (0, 8, 0, 8, 0, 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": (5,) * 6}, "5 heads do not divide 48 channels"),
        ({"windows": (8, 16)}, "same length"),
        ({"windows": (0,) * 6}, "positive"),
        ({"upsampler": "bilinear"}, "upsampler must be direct or pixelshuffle"),
        ({"scale": 0}, "positive"),
    ],
)
def test_impossible_configurations_say_why(change, message):
    with pytest.raises(configs.ConfigError, match=message):
        replace(ribsr.config("sst-light"), **change)


def test_unknown_name_lists_the_choices():
    with pytest.raises(configs.ConfigError, match=r"sst-light, sst-light\+, sst, sst\+"):
        ribsr.config("swinir")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.yml", "scale: 2", "no network_g section"),
        ("a.yml", "network_g: {type: SwinIR, dim: 3}", "SST and ESCRIB are supported"),
        ("a.yml", "network_g: {type: SST, attn_type: Flex}", "attn_type must be 'RIB'"),
        ("a.yml", "network_g: {type: SST, colour: red}", "unknown option 'colour'"),
        ("a.yml", "network_g: {type: SST, dim: 48}", "missing"),
        ("a.yml", "a: [", "not YAML"),
        ("a.json", "{", "not JSON"),
        ("a.png", b"\x89PNG", "not a text file"),
        ("a.json", "[1]", "no configuration"),
        ("a.json", '{"architecture": "vit"}', "sst or esc-rib"),
        ("a.json", '{"architecture": "sst", "colour": 1}', "unknown field 'colour'"),
    ],
)
def test_bad_files_say_what_is_wrong_and_where(tmp_path, name, text, message):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(configs.ConfigError, match=message) as error:
        configs.read(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
