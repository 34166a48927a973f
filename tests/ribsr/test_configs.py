from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

import ribsr
from ribsr import configs
from ribsr.base.errors import RibsrError


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
        ({"windows": (0,) * 6}, "windows must be 1 to 1024"),
        ({"expansion": 1e308}, "expansion 1e.308 makes no hidden channels, or too many"),
        ({"upsampler": "bilinear"}, "upsampler must be direct or pixelshuffle"),
        ({"scale": 0}, "scale must be 1 to 64"),
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
        ("a.json", "[" * 99999, "not JSON"),
        ("a.yml", "a: 2001-99-99", "not YAML"),
        ("a.yml", "network_g: {type: SST, 1: 2, a: 3}", "unknown option 1"),
        ("a.yml", "network_g: {type: SST, rank: 4, ranks: [4]}", "rank and ranks say the same; leave one out"),
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


WRONG = [
    ("blocks", 2.5, "a whole number, got 2.5"),
    ("blocks", 2.0, "a whole number, got 2.0"),
    ("blocks", True, "a whole number, got True"),
    ("blocks", "5", "a whole number, got '5'"),
    ("blocks", None, "a whole number, got None"),
    ("blocks", [5], "a whole number, got [5]"),
    ("blocks", math.nan, "a whole number, got nan"),
    ("expansion", math.inf, "a number, got inf"),
    ("expansion", math.nan, "a number, got nan"),
    ("expansion", 10**400, "a number, got 1000"),
    ("expansion", False, "a number, got False"),
    ("expansion", "large", "a number, got 'large'"),
    ("windows", [8, 16.5], "a list of whole numbers, got [8, 16.5]"),
    ("windows", {"a": 8}, "a list of whole numbers, got {'a': 8}"),
    ("windows", "816", "a list of whole numbers, got '816'"),
    ("upsampler", ["direct"], "direct or pixelshuffle, got ['direct']"),
    ("name", 3, "text, got 3"),
]


@pytest.mark.parametrize(("field", "value", "message"), WRONG)
def test_values_of_other_types_are_refused(field, value, message):
    values = {**configs.to_dict(ribsr.config("sst-light")), field: value}
    with pytest.raises(configs.ConfigError) as error:
        configs.from_dict(values, "own.json")
    assert str(error.value).startswith(f"own.json: {field} must be {message}")


def test_the_authors_options_are_named_as_they_name_them(published):
    options = published["SST_X2"]["config"]
    for name, value, message in (
        ("n_blocks", 2.5, "n_blocks must be a whole number, got 2.5"),
        ("exp_ratio", "much", "exp_ratio must be a number, got 'much'"),
        ("window_sizes", [8, None], "window_sizes must be a list of whole numbers, got [8, None]"),
        ("upsampler_type", [1], "upsampler_type must be direct or pixelshuffle, got [1]"),
    ):
        with pytest.raises(configs.ConfigError) as error:
            configs.from_authors({**options, name: value}, "a.yml")
        assert str(error.value) == f"a.yml: {message}"


def test_whole_numbers_stand_for_others_and_one_for_a_list():
    values = configs.to_dict(ribsr.config("esc-rib"))
    config = configs.from_dict({**values, "expansion": 2, "windows": 64}, "own.json")
    assert (config.expansion, config.windows) == (2.0, (64,))
    assert isinstance(config.expansion, float)


def test_config_errors_are_ours_and_value_errors():
    assert issubclass(configs.ConfigError, RibsrError)
    assert issubclass(configs.ConfigError, ValueError)
