"""How training pictures are made worse: repeatably, within range, and as each part of it is defined."""

import cv2
import numpy as np
import torch

from toyland.degrade import blocky, blurred, degrade
from training.randomness import Draws


def pictures(count: int = 6) -> torch.Tensor:
    return torch.rand(count, 3, 32, 48, generator=torch.Generator().manual_seed(1))


def test_a_picture_is_made_worse_by_its_own_counter_alone() -> None:
    x = pictures()
    together = degrade(x, Draws(4, range(6)))
    assert torch.equal(together, degrade(x, Draws(4, range(6))))
    alone = degrade(x[2:4], Draws(4, [2, 3]))
    torch.testing.assert_close(together[2:4], alone, atol=1e-6, rtol=0)
    assert not torch.equal(together, degrade(x, Draws(5, range(6))))


def test_values_stay_in_range_and_the_picture_stays_itself() -> None:
    x = torch.nn.functional.interpolate(torch.rand(64, 3, 4, 4, generator=torch.Generator().manual_seed(2)), 32, mode="bilinear")
    worse = degrade(x, Draws(0, range(64)))
    assert 0 <= worse.min() <= worse.max() <= 1
    change = (worse - x).abs().mean(dim=(1, 2, 3))
    assert 0.005 < float(change.min()) < float(change.max()) < 0.2
    for before, after in zip(x, worse, strict=True):
        assert np.corrcoef(before.flatten(), after.flatten())[0, 1] > 0.85


def test_blur_is_opencvs() -> None:
    x = pictures(1)
    image_HWC = np.ascontiguousarray(x[0].permute(1, 2, 0).numpy())
    wanted = cv2.GaussianBlur(image_HWC, (7, 7), 1.2, borderType=cv2.BORDER_REPLICATE)
    np.testing.assert_allclose(blurred(x)[0].permute(1, 2, 0).numpy(), wanted, atol=1e-5)


def test_blocks_are_rounded_cosine_coefficients() -> None:
    x = pictures(2)
    step = torch.tensor([0.0, 0.3])
    rounded = blocky(x, step)
    torch.testing.assert_close(rounded[0], x[0], atol=2e-3, rtol=0)  # step 0 still rounds to 1e-4, over 64 coefficients
    wanted = cv2.dct(np.ascontiguousarray(x[1, 0, 8:16, 16:24].numpy()))
    found = cv2.dct(np.ascontiguousarray(rounded[1, 0, 8:16, 16:24].numpy()))
    frequency = np.arange(8)
    steps = 0.3 * (1 + frequency[:, None] + frequency) / 8
    np.testing.assert_allclose(found, np.round(wanted / steps) * steps, atol=1e-4)
