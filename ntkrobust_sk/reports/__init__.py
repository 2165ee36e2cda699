"""Results for people to read: a run as one HTML file, and the demo."""

from .demo import run_demo as run_demo
from .run_report import write_report as write_report
