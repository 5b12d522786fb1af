"""The graph as a golden sees it: everything that people, sensors and guards rely on, and nothing that changes by itself."""

import json
from pathlib import Path
from typing import Any

from beatsight_assets.dag.build import build_defs
from beatsight_assets.settings import PROFILES, load_settings

GOLDENS = Path(__file__).parent / "goldens"


def snapshot(profile: str) -> dict[str, Any]:
    """Assets, checks, jobs, sensors and schedules of a profile."""
    defs = build_defs(settings=load_settings("/nowhere", profile, environ={}))
    graph = defs.resolve_asset_graph()
    assets = {}
    for key in sorted(graph.get_all_asset_keys()):
        node = graph.get(key)
        condition = node.automation_condition
        checks = sorted(graph.get_check_keys_for_assets({key}), key=lambda k: k.name)
        assets[key.to_user_string()] = {
            "group": node.group_name,
            "deps": sorted(p.to_user_string() for p in node.parent_keys),
            "partitions": sorted(node.partitions_def.get_partition_keys()) if node.partitions_def else None,
            "pools": sorted(node.pools or ()),
            "kinds": sorted(node.kinds),
            "owners": sorted(node.owners),
            "has_code_version": bool(node.code_version),
            "automation": condition.get_label() if condition else None,
            "checks": {k.name: {"blocking": graph.get(k).blocking, "partitioned": graph.get(k).partitions_def is not None} for k in checks},
        }
    return {
        "assets": assets,
        "jobs": {
            job.name: sorted(k.to_user_string() for k in job.asset_layer.selected_asset_keys)
            for job in defs.resolve_all_job_defs()
            if not job.name.startswith("__")
        },
        "sensors": {s.name: s.default_status.value for s in defs.get_repository_def().sensor_defs},
        "schedules": {s.name: [s.cron_schedule, s.default_status.value] for s in defs.get_repository_def().schedule_defs},
    }


def golden_path(profile: str) -> Path:
    return GOLDENS / f"graph_{profile}.json"


def render(found: dict[str, Any]) -> str:
    return json.dumps(found, indent=1, sort_keys=True) + "\n"


def regenerate() -> list[Path]:
    """Write the goldens of every profile."""
    paths = []
    for profile in PROFILES:
        golden_path(profile).write_text(render(snapshot(profile)), encoding="utf-8")
        paths.append(golden_path(profile))
    return paths
