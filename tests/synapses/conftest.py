"""What the tests of neurons share."""

import pytest


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """Every test that takes this runs on the CPU, and on the GPU where there is one."""
    return str(request.param)
