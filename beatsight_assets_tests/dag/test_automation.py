"""When a cheap asset is made again by itself: the situations of design/dagster.md section 2."""

import dagster as dg

from beatsight_assets.dag.automation import when_inputs_change


class Pair:
    """A parent with a blocking check, and a child that follows it."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self.instance, self.cursor, self.version, self.is_green = instance, None, "1", True
        self.defs = self.definitions()

    def definitions(self, code_version: str = "1") -> dg.Definitions:
        @dg.asset
        def parent() -> dg.MaterializeResult:
            return dg.MaterializeResult(data_version=dg.DataVersion(self.version))

        @dg.asset_check(asset=parent, blocking=True)
        def gate() -> dg.AssetCheckResult:
            return dg.AssetCheckResult(passed=self.is_green, severity=dg.AssetCheckSeverity.ERROR)

        @dg.asset(deps=[parent], automation_condition=when_inputs_change(), code_version=code_version)
        def child() -> dg.MaterializeResult:
            return dg.MaterializeResult(data_version=dg.DataVersion(f"child of {self.version}"))

        everything, bare = dg.AssetSelection.assets("parent"), dg.AssetSelection.assets("parent").without_checks()
        jobs = [
            dg.define_asset_job("judged", everything),
            dg.define_asset_job("bare", bare),
            dg.define_asset_job("child_job", dg.AssetSelection.assets("child")),
        ]
        jobs.append(dg.define_asset_job("gate_job", dg.AssetSelection.checks(dg.AssetCheckKey(dg.AssetKey("parent"), "gate"))))
        return dg.Definitions(assets=[parent, child], asset_checks=[gate], jobs=jobs)

    def run(self, job: str) -> None:
        quiet = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
        self.defs.resolve_job_def(job).execute_in_process(instance=self.instance, raise_on_error=False, run_config=quiet)

    def tick(self) -> int:
        """Requests of one tick; what is requested is made, as the daemon would."""
        result = dg.evaluate_automation_conditions(defs=self.defs, instance=self.instance, cursor=self.cursor)
        self.cursor = result.cursor
        if result.total_requested:
            self.run("child_job")
        return result.total_requested


def test_child_follows_green_and_changed_parents(instance: dg.DagsterInstance) -> None:
    """New version: once. Same version: not. Red check: not, and once when it turns green. Parent without its checks: not."""
    pair = Pair(instance)
    assert pair.tick() == 0, "the first tick only sets the baseline"
    pair.run("judged")
    assert pair.tick() == 1, "first version of the parent"
    assert pair.tick() == 0, "nothing new"
    pair.run("judged")
    assert pair.tick() == 0, "made again with the same content"
    pair.version, pair.is_green = "2", False
    pair.run("judged")
    assert pair.tick() == 0, "changed, but its gate is red"
    pair.is_green = True
    pair.run("gate_job")
    assert pair.tick() == 1, "the gate turned green later: the request was not lost"
    assert pair.tick() == 0, "handled; Dagster sees the child made"
    pair.version = "3"
    pair.run("bare")
    assert pair.tick() == 0, "made again without its checks: the old pass is not about it"
    pair.run("gate_job")
    assert pair.tick() == 1, "judged now"
    assert pair.tick() == 0, "handled"
    pair.defs = pair.definitions(code_version="2")
    assert pair.tick() == 1, "new code of the child"
