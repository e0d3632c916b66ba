"""What the oracle imports late, imported before any test: PEFT's BOFT looks for a compiler through setuptools, which refuses to be
loaded after anything else has loaded Python's own distutils."""

import contextlib

with contextlib.suppress(ImportError):
    import setuptools  # noqa: F401
