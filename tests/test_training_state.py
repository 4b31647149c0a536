"""The file of a run's training state: what was written comes back, on the device and in the kind it had."""

import pytest
import torch

from ocr_eval.methods.pack import read_state, write_state


def trained(device="cpu", steps=2):
    """Parameters of two shapes and an optimizer that has made some steps with them."""
    torch.manual_seed(0)
    parameters = {
        f"m.{i}": torch.nn.Parameter(torch.randn(shape, device=device)) for i, shape in enumerate([(3, 5), 7])
    }
    optimizer = torch.optim.AdamW(parameters.values(), lr=0.1)
    for _ in range(steps):
        for parameter in parameters.values():
            parameter.grad = torch.randn(parameter.shape, device=device)
        optimizer.step()
    return parameters, optimizer


def written(path, parameters, optimizer, epochs=4):
    with path.open("wb") as file:
        write_state(file, parameters, optimizer, epochs)
    return path


def test_what_was_written_comes_back(tmp_path):
    parameters, optimizer = trained()
    optimizer.state[parameters["m.0"]]["step"] = 2  # bitsandbytes counts in numbers, PyTorch in tensors
    path = written(tmp_path / "s", parameters, optimizer)
    others, other = trained(steps=0)
    assert read_state(path, others, other) == 4
    for name, parameter in parameters.items():
        assert torch.equal(others[name], parameter)
        for key, value in optimizer.state[parameter].items():
            found = other.state[others[name]][key]
            assert type(found) is type(value)
            assert torch.equal(torch.as_tensor(found), torch.as_tensor(value))


def test_all_state_goes_to_the_device_of_its_parameter(tmp_path):
    path = written(tmp_path / "s", *trained())
    others, other = trained("meta", steps=0)
    read_state(path, others, other)
    devices = {key: value.device.type for p in others.values() for key, value in other.state[p].items()}
    assert devices == {"step": "meta", "exp_avg": "meta", "exp_avg_sq": "meta"}


def test_a_state_of_another_run_is_refused(tmp_path):
    parameters, optimizer = trained()
    path = written(tmp_path / "s", parameters, optimizer)
    others = {"m.0": parameters["m.0"]}
    with pytest.raises(KeyError):
        read_state(path, others, optimizer)


def test_a_state_holds_its_own_lane_and_no_other(tmp_path):
    stack = torch.randn(8, 50_000)
    parameters = {"lane": torch.nn.Parameter(stack[3])}
    path = written(tmp_path / "s", parameters, torch.optim.AdamW(parameters.values()))
    assert path.stat().st_size < 2 * 50_000 * 4
