"""Head figures: the tables of helpers.detection as they are drawn, and with which options."""

from __future__ import annotations

import pandas as pd

from helpers.detection import spoken

HEAD_MAP = {"drawing": "heatmaps", "x": "head", "row": "corruption", "column": "metric", "value": "deviations"}
HEAD_MAP |= {"limit": 4, "xlabel": "head", "label": "standard deviations from the mean"}
THRESHOLDS = {"drawing": "curves", "x": "deviations", "y": "heads", "hue": "metric", "facet": "panel", "unit": None}
THRESHOLDS |= {"mark": None, "xlabel": "threshold (standard deviations)", "ylabel": "heads detected"}


def head_map(detected: pd.DataFrame) -> pd.DataFrame:
    """Heads by method, drawn with HEAD_MAP, of a table of detection.detect.

    The unit is what heads are detected in: standard deviations over heads, from their mean.
    """
    deviations = (detected["score"] - detected["mean"]) / detected["deviation"].where(detected["deviation"] > 0)
    return detected.assign(deviations=deviations, metric=detected["metric"].map(spoken))


def threshold_lines(sweep: pd.DataFrame) -> pd.DataFrame:
    """Numbers of detected heads by threshold, drawn with THRESHOLDS, of a table of detection.threshold_sweep."""
    long = sweep.melt(["corruption", "metric", "deviations"], ["positive", "negative"], "sign", "heads")
    return long.assign(panel=long["corruption"] + ", " + long["sign"], metric=long["metric"].map(spoken))
