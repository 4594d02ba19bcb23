"""Networks of published papers, one file per paper."""

if "." not in __name__:
    raise ModuleNotFoundError("import this package as spikeloom.models", name=__name__)
