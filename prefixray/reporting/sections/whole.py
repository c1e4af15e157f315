"""All sections of a report in their order."""

from pathlib import Path

from prefixray.reporting.sections.decisions import decision_section
from prefixray.reporting.sections.outputs import outputs_section
from prefixray.reporting.sections.records import cost_section, records_section, use_section
from prefixray.reporting.sections.result import (
    final_curve_section,
    group_section,
    no_result_section,
    result_section,
    seed_section,
)
from prefixray.reporting.sections.search import curve_section, early_section, value_section
from prefixray.reporting.sections.section import Section
from prefixray.reporting.sections.timeline import timeline_section
from prefixray.reporting.tables import search_grid
from prefixray.results.record import Stored, is_finished


def sections(stored: Stored, folder: Path) -> list[Section]:
    """All sections of the report on the sweep in `folder`."""
    search = stored["search"]
    if is_finished(stored):
        parts = [result_section(stored), *seed_section(stored), *group_section(stored), *final_curve_section(stored)]
    else:
        parts = [no_result_section(folder)]
    if search:
        parts += [curve_section(stored), value_section(stored), *decision_section(stored), early_section(stored)]
    if is_finished(stored):
        parts += [outputs_section(stored, folder), cost_section(stored), *timeline_section(stored, folder)]
        parts += [use_section(stored, folder), records_section(stored, folder)]
    else:
        parts += timeline_section(stored, folder)
        parts += [Section("records", "All trials", folded=search_grid(search))] if search else []
    return parts
