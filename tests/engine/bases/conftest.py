import pytest

from tests.support.web import serving


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch):
    """A web server that is also the Hub, reachable and without a proxy between."""
    with serving() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        yield server
