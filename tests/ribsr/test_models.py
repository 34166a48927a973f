from __future__ import annotations

import pytest
import torch

import ribsr
from ribsr import configs
from ribsr.escrib import symmetrise

SCALES = (2, 3, 4)


@pytest.mark.parametrize("backend", ["reference", "sdpa"])
def test_golden_vectors(golden, backend):
    model = golden.model()
    ribsr.set_attention(model, backend)
    with torch.inference_mode():
        y = model(torch.from_numpy(golden.x))
    assert float((y - torch.from_numpy(golden.y)).abs().max()) <= 1e-5


def test_golden_vectors_in_float64_are_closer_still(golden):
    model = golden.model().double()
    with torch.inference_mode():
        y = model(torch.from_numpy(golden.x).double())
    assert float((y - torch.from_numpy(golden.y)).abs().max()) <= 5e-6


def test_positions_matter_in_the_golden_vectors(golden):
    """Guards the test above: a model without its RIB must not pass it."""
    model = golden.model()
    for name, parameter in model.named_parameters():
        if name.endswith("to_q"):
            parameter.data.zero_()
    with torch.inference_mode():
        y = model(torch.from_numpy(golden.x))
    assert float((y - torch.from_numpy(golden.y)).abs().max()) > 0.01


def test_keys_and_shapes_are_those_of_the_published_checkpoints(published):
    differences = published.pop("_x3_x4_differences")
    entries = {name: (entry["config"], entry["state_dict"], entry["params"]) for name, entry in published.items()}
    for name, entry in differences.items():
        config, shapes, _ = entries[entry["differs_from"]]
        scale = int(name[-1])
        entries[name] = ({**config, "upscaling_factor": scale}, {**shapes, **entry["changed_shapes"]}, entry["params"])
    assert len(entries) >= 20
    for name, (options, shapes, count) in entries.items():
        with torch.device("meta"):
            model = ribsr.build(configs.from_authors(options, name))
        assert {key: list(value.shape) for key, value in model.state_dict().items()} == shapes, name
        assert sum(parameter.numel() for parameter in model.parameters()) == count, name


@pytest.mark.parametrize("name", ["sst-light", "esc-rib"])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 5)])
def test_any_size_works(name, scale, size):
    model = ribsr.build(ribsr.config(name, scale)).eval()
    with torch.inference_mode():
        y = model(torch.rand(2, 3, *size))
    assert y.shape == (2, 3, scale * size[0], scale * size[1])
    assert bool(torch.isfinite(y).all())


def test_pictures_of_a_batch_do_not_mix(golden):
    model = golden.model()
    x = torch.rand(3, 3, 11, 14, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(model(x), torch.cat([model(one[None]) for one in x]), rtol=0, atol=1e-5)


def test_initialisation_is_the_authors():
    torch.manual_seed(0)
    model = ribsr.build(ribsr.config("sst-light"))
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            assert module.bias is not None
            assert float(module.bias.detach().abs().max()) == 0
            if module.kernel_size == (1, 1):
                assert 0.01 < float(module.weight.detach().std()) < 0.03
    rib = torch.cat([p.detach().flatten() for name, p in model.named_parameters() if name.endswith("to_q")])
    assert abs(float(rib.std()) - 0.05) < 0.002


def test_symmetrised_bank_has_all_eight_symmetries():
    bank = torch.randn(4, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    mean = symmetrise(bank)
    for turned in (mean.flip(2), mean.flip(3), mean.transpose(2, 3), torch.rot90(mean, 1, (2, 3))):
        torch.testing.assert_close(turned, mean)
    torch.testing.assert_close(mean.sum((2, 3)), bank.sum((2, 3)))


def test_models_train(golden):
    model = golden.model().train()
    x = torch.from_numpy(golden.x)
    model(x).square().mean().backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None or not bool(torch.isfinite(p.grad).all())]
    assert missing == []
