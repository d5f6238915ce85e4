"""Pictures of heads and runs, for people: importance, richness, correlation, curves, yardsticks.

It needs matplotlib, the extra ``plots``. Every function that draws one picture takes matplotlib
``Axes``, or makes a figure of its own, and returns the axes; the global state of ``pyplot`` is
neither used nor changed. Colours differ in brightness too, and lines also in style.

Example:
    >>> from hifi import plots
    >>> axes = plots.importance("libraries.safetensors")
    >>> plots.save(axes, "importance.png")
"""

from hifi.errors import MissingExtraError

try:
    from hifi.plots.canvas import ENDINGS, check_ending, save
    from hifi.plots.curves import losses, validation
    from hifi.plots.head_maps import importance, richness, scores
    from hifi.plots.head_pairs import correlation
    from hifi.plots.overview import correlations, overview
    from hifi.plots.result_bars import yardsticks
    from hifi.plots.spectra import singular_values
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "matplotlib":
        raise
    raise MissingExtraError("hifi.plots", package="matplotlib", extra="plots") from error

__all__ = [
    "ENDINGS",
    "check_ending",
    "correlation",
    "correlations",
    "importance",
    "losses",
    "overview",
    "richness",
    "save",
    "scores",
    "singular_values",
    "validation",
    "yardsticks",
]
