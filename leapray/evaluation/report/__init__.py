"""Evaluations as an HTML page that opens without a network, and two of them side by side."""

from leapray.evaluation.report.comparison import compare_report, compare_reports
from leapray.evaluation.report.making import Material
from leapray.evaluation.report.skill import require_drawable
from leapray.evaluation.report.write import FILE as REPORT
from leapray.evaluation.report.write import write_report

__all__ = ["REPORT", "Material", "compare_report", "compare_reports", "require_drawable", "write_report"]
