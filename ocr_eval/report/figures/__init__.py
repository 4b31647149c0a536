"""Records -> figures that can be printed. Every series has a marker or line of its own beside its colour."""

from ocr_eval.report.figures.curves import curve_figure, efficiency_figure
from ocr_eval.report.figures.heatmaps import heatmap_figure
from ocr_eval.report.figures.scores import scatter_figure, score_figure
from ocr_eval.report.figures.style import save

__all__ = ["curve_figure", "efficiency_figure", "heatmap_figure", "save", "scatter_figure", "score_figure"]
