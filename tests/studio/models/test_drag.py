"""What travels on a drag is read back exactly; anything foreign or damaged is as if nothing were there."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PySide6.QtCore import QByteArray, QMimeData, QUrl

from studio.models import drag


NAME = st.text(min_size=1, max_size=40, alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="/\x00"))


@given(st.lists(NAME.filter(lambda name: name not in (".", "..")), max_size=4), st.lists(st.integers(0, 2**40), max_size=4))
def test_round_trip(names, entries):
    paths = [Path("/library") / name for name in names]
    load = drag.unpack(drag.pack(adapters=paths, entries=entries, names=names))
    assert load == drag.Load(tuple(paths), tuple(entries))


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"null", b'{"version": 2, "adapters": [], "entries": []}', b'{"version": 1}',
                                 b'{"version": 1, "adapters": [1], "entries": []}', b'{"version": 1, "adapters": [], "entries": [true]}',
                                 b'{"version": 1, "adapters": ["a"], "entries": ["x"]}', b"[" * 100_000, b" " * (drag.LIMIT + 1)])
def test_what_is_not_sound_is_nothing(raw):
    mime = QMimeData()
    mime.setData(drag.MIME, QByteArray(raw))
    assert not drag.unpack(mime)


def test_files_from_outside(tmp_path):
    mime = QMimeData()
    mime.setUrls([QUrl.fromLocalFile(str(tmp_path)), QUrl("https://example.org/x")])
    assert drag.unpack(mime) == drag.Load(files=(tmp_path,))
    assert drag.adapter_folder(tmp_path) is None
    (tmp_path / "adapter_config.json").write_text("{}")
    assert drag.adapter_folder(tmp_path) == drag.adapter_folder(tmp_path / "adapter_config.json") == tmp_path
