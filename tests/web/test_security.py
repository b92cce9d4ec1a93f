"""Known attacks on such pages, replayed against the running one."""

import pytest

from tests.web.attacks import replay
from tests.web.conftest import Site

pytestmark = pytest.mark.timeout(900)  # the first test also waits for the server


def test_known_attacks_are_refused(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    before = set(site.out.glob("*.png"))
    refused, through = replay(site.port)
    with capsys.disabled():
        print(f"\n{refused} attacks refused, {len(through)} got through")
    assert through == []
    assert refused > 150
    assert set(site.out.glob("*.png")) == before
