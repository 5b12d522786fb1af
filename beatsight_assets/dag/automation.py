"""When an asset inside the graph is made again by itself."""

import dagster as dg


def when_inputs_change() -> dg.AutomationCondition:
    """New data or new code upstream, all blocking checks of the parents green and fresh, nothing in flight.

    Without `since_last_handled` the request would be lost when the check turns green one tick after the data.
    """
    new_input = dg.AutomationCondition.any_deps_updated().replace("newly_updated", dg.AutomationCondition.data_version_changed())
    reason = new_input | dg.AutomationCondition.code_version_changed() | dg.AutomationCondition.newly_missing()
    calm = (
        ~dg.AutomationCondition.any_deps_missing() & ~dg.AutomationCondition.any_deps_in_progress() & ~dg.AutomationCondition.in_progress()
    )
    return (reason.since_last_handled() & dg.AutomationCondition.all_deps_blocking_checks_passed() & calm).with_label(  # type: ignore[misc]
        "when_inputs_change"
    )
