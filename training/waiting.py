"""What a step does not need waits on the CPU: once all is cached, text encoders and autoencoder work only when something is drawn."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn

from training.controlnet import ControlNetTask


@dataclass
class Waiting:
    """Networks and the device where they work."""

    networks: list[nn.Module] = field(default_factory=list)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def rest(self) -> None:
        """Sends them to the CPU; what an accelerator held of them is free."""
        if self.device.type == "cpu":
            return
        for network in self.networks:
            network.to("cpu")
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Has them on their device meanwhile."""
        if self.device.type != "cpu":
            for network in self.networks:
                network.to(self.device)
        try:
            yield
        finally:
            self.rest()


def waiting(task: ControlNetTask) -> Waiting:
    """The base's networks but the denoiser, and but the autoencoder where a reward looks at pictures."""
    needed = [task.steering.denoiser] + ([task.reward.vae] if task.reward else [])
    found = [network for network in task.base.networks().values() if not any(network is other for other in needed)]
    return Waiting(found, task.base.place.device)
