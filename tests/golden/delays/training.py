"""Three steps of training, and the schedules by epoch."""

from __future__ import annotations

import torch
from spikeloom_tests.golden.delays.nets import built
from spikeloom_tests.golden.delays.stored import Stored, close

from spikeloom.models.delay_official import official_state
from spikeloom.models.delay_readout import delay_loss
from spikeloom.models.delay_schedule import DelaySchedule, parameter_groups


def check_steps(file: Stored) -> None:
    """Losses, rates, and the whole state after every step."""
    model, config = built(file), file.config
    groups = parameter_groups(model, config["lr_w"], config["weight_decay"], config["lr_pos"] / config["lr_w"])
    optimizers = torch.optim.Adam(groups[:-1]), torch.optim.Adam(groups[-1:])
    schedule = DelaySchedule(
        config["epochs"],
        config["lr_w"],
        config["lr_pos"] / config["lr_w"],
        sigma=config["sigInit"],
        version=config["DCLSversion"],
        sigma_epochs=config["final_epoch"],
    )
    values = schedule.apply(0, model, *optimizers)
    for step in range(config["steps"]):
        x = file[f"in.x.{step}"]
        labels = (torch.arange(x.shape[1]) + step) % config["n_outputs"]
        ours = torch.tensor([*[values.lr] * 3, values.position_lr, values.beta1], dtype=torch.float64)
        close(ours, file["out.lrs"][step], 1e-9, f"rates of step {step}")
        loss = delay_loss(model(x), labels, config["loss"])
        close(loss, file["out.losses"][step], 1e-7, f"loss of step {step}")
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        model.settle_()
        values = schedule.apply(step + 1, model, *optimizers)
        own, stored = official_state(model), file.part(f"out.step{step}.")
        assert own.keys() == stored.keys()
        for key, value in stored.items():
            close(own[key], value, 1e-7, f"{key} after step {step}")


def check_schedules(file: Stored) -> None:
    """Rates, momentum and width of every epoch."""
    for name, epochs in file.config["epochs"].items():
        schedule = DelaySchedule(epochs, sigma=float(file.config["max_delay"][name] // 2))
        values = [schedule.at(epoch) for epoch in range(epochs)]
        ours = torch.tensor([[v.lr, v.position_lr, v.beta1, v.sigma] for v in values], dtype=torch.float64)
        for column, tolerance in enumerate((1e-9, 1e-9, 1e-9, 1e-4)):
            close(ours[:, column], file[f"out.{name}"][:, column], tolerance, f"{name}, column {column}")
