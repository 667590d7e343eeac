"""The one place that holds the version; pyproject.toml and the results files read it from here."""

__all__ = ["__version__"]

__version__ = "0.1.0"
