"""The engine: PEFT's Models API, training, mixing, merging and exporting. Knows no screen; importing it is instant."""

__version__ = "0.1.0"
