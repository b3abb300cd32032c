"""What the tests of pictures share."""

import matplotlib.figure
import pytest


@pytest.fixture
def figures(monkeypatch):
    """The figures that were saved, in order."""
    saved = []
    savefig = matplotlib.figure.Figure.savefig

    def spy(figure, *args, **kwargs):
        saved.append(figure)
        return savefig(figure, *args, **kwargs)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", spy)
    return saved
