"""Where an adapter is looked for: what is neither a folder nor a name on the Hub is told as a folder that is not there."""

from __future__ import annotations

import pytest

from engine.checkpoint.hub import upload
from engine.errors import BadAdapter, Unreachable
from engine.store.hub import locate

NO_NAMES = ["my skills/shop", "C:/shop", "a/..", "x--y/z", "a" * 200 + "/b"]


@pytest.mark.parametrize("where", NO_NAMES)
def test_what_is_no_name_on_the_hub_is_no_adapter(where):
    with pytest.raises(BadAdapter, match="Can't find 'adapter_config.json'"):
        locate(where)


@pytest.mark.parametrize("where", NO_NAMES)
def test_nothing_is_sent_to_what_is_no_name(tmp_path, where):
    with pytest.raises(Unreachable, match="could not be sent"):
        upload(tmp_path, where)
