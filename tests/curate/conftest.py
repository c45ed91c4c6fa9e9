import pytest

from tests.curate.kinds import MAKERS


@pytest.fixture(params=MAKERS)
def make(request):
    """Makes rows of one kind from a list of dicts."""
    return MAKERS[request.param]
