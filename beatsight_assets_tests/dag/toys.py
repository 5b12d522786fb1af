"""The real graph, checks and guards around toy work: every asset writes one line and a receipt with the verdicts that the table asks for."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import dagster as dg

from beatsight_assets.dag import gating
from beatsight_assets.dag.assets.model import MANIFEST_GATES, RELEASE_GATES
from beatsight_assets.dag.build import build_defs
from beatsight_assets.dag.checks.judge import build_checks
from beatsight_assets.dag.checks.table import blocking_keys, checks_of
from beatsight_assets.dag.resources import Lake
from beatsight_assets.settings import Settings
from beatsight_assets.stages import Outcome, Report, run_stage
from beatsight_assets.verdict import Rule, Verdict

GUARDS: dict[str, Callable[[dg.DagsterInstance, Settings], None]] = {
    "merged_manifest": lambda instance, settings: gating.require_datasets(instance, settings, blocking_keys("events")),
    "candidate_model": lambda instance, settings: gating.require_stages(instance, settings, blocking_keys(*MANIFEST_GATES)),
    "promoted_model": lambda instance, settings: gating.require_stages(instance, settings, blocking_keys(*RELEASE_GATES)),
}
RAW = ("raw_files", "rendered_audio", "raw_integrity")
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


@dataclass
class Toys:
    """`content` of a product may be changed, checks named in `red` fail, each as `asset/check` or `asset[partition]/check`."""

    settings: Settings
    instance: dg.DagsterInstance
    content: dict[str, str] = field(default_factory=dict)
    red: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        graph = build_defs(settings=self.settings).resolve_asset_graph()
        self.datasets = dg.StaticPartitionsDefinition(list(self.settings.datasets))
        self.parents = {
            key.to_user_string(): sorted(p.to_user_string() for p in graph.get(key).parent_keys if p.to_user_string() not in RAW)
            for key in graph.get_all_asset_keys()
        }
        self.parents = {name: found for name, found in self.parents.items() if name not in RAW}

    def run(self, *names: str, partition: str | None = None, checks: bool = True) -> dg.ExecuteInProcessResult:
        """One run of some assets, with or without their checks."""
        selection = dg.AssetSelection.assets(*names)
        found = [c for c in build_checks({"events": self.datasets}) if next(iter(c.check_specs)).asset_key.to_user_string() in self.parents]
        defs = dg.Definitions(
            assets=[self._asset(name) for name in self.parents],
            asset_checks=found,
            jobs=[dg.define_asset_job("toy_job", selection if checks else selection.without_checks())],
            resources={"lake": Lake(data_root=str(self.settings.layout.root), profile=self.settings.profile)},
            executor=dg.in_process_executor,
        )
        return defs.resolve_job_def("toy_job").execute_in_process(
            instance=self.instance, partition_key=partition, raise_on_error=False, run_config=QUIET
        )

    def events(self, *datasets: str) -> None:
        """Make and judge the events of some datasets."""
        for name in datasets:
            self.run("events", partition=name)

    def _asset(self, name: str) -> dg.AssetsDefinition:
        partitions = self.datasets if name == "events" else None

        @dg.asset(name=name, deps=self.parents[name], partitions_def=partitions)
        def toy(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
            if name in GUARDS:
                GUARDS[name](context.instance, self.settings)
            report = self.work(name, context.partition_key if partitions else None)
            return dg.MaterializeResult(data_version=dg.DataVersion(report.digest))

        return toy

    def path(self, name: str, partition: str | None) -> str:
        return f"events/{partition}.parquet" if name == "events" else f"toys/{name}.txt"

    def work(self, name: str, partition: str | None) -> Report:
        """The product of an asset and its receipt, as a real stage leaves them."""
        label = f"{name}[{partition}]" if partition else name
        target = self.settings.layout.root / self.path(name, partition)
        parents = []
        for parent in self.parents[name]:
            made = (
                sorted(self.settings.layout.root.glob("events/*.parquet"))
                if parent == "events"
                else [self.settings.layout.root / self.path(parent, None)]
            )
            parents += [(parent, path) for path in made]
        rest = "".join(path.read_text() for _, path in parents)

        def outcome() -> Outcome:
            self.settings.store.publish(target, f"{label} {self.content.get(label, '1')}\n{rest}".encode())
            return Outcome(outputs=[(name, target, None)], verdicts=self.verdicts(name, label))

        return run_stage(
            self.settings,
            name,
            partition=partition,
            version="1",
            options={"content": self.content.get(label, "1"), "red": sorted(self.red)},
            parents=parents,
            work=outcome,
        )

    def verdicts(self, name: str, label: str) -> Sequence[Verdict]:
        gates: dict[str, list[Rule]] = {}
        for check in checks_of(name):
            is_green = f"{label}/{check.name}" not in self.red
            gates.setdefault(check.gate, []).extend(
                Rule(f, is_green, 1.0, 1.0, "toy", check.blocking) for f in check.families or (check.name,)
            )
        return [Verdict(gate, tuple(rules), profile=self.settings.profile) for gate, rules in gates.items()]


def made(result: dg.ExecuteInProcessResult) -> set[str]:
    """Assets that a run made."""
    return {e.asset_key.to_user_string() for e in result.get_asset_materialization_events() if e.asset_key}


def refusals(result: dg.ExecuteInProcessResult, name: str) -> str:
    """What the step of an asset said when it refused; empty when it did not."""
    said: Iterable[dg.DagsterEvent] = result.filter_events(lambda e: e.is_step_failure and e.step_key == name)
    return " ".join((e.step_failure_data.user_failure_data.description or "") for e in said if e.step_failure_data.user_failure_data)
