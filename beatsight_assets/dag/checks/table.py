"""Every check of every asset, as data: what it is called, what must hold, which rules of which verdict answer it, and whether it blocks.

Belongs here: names and sentences. Does not belong here: limits (configs/gates) and rules (the stage that judges).
"""

from dataclasses import dataclass

import dagster as dg

TRAINING = "training"  # the bundle that assets make; the command line makes others
NO_LIMIT = "no limit set"
NOT_REQUIRED = "not required by this profile"


@dataclass(frozen=True)
class Check:
    """One check. `families` are names of rules (`min_counts` finds `min_counts[kick]`); empty means the whole verdict.

    `no_rules` : what to say when the verdict has no such rule; without it that is a failure
    `no_verdict` : what to say when the receipt has no such verdict; without it that is a failure
    `optional_gate` : the profile decides in `required:` whether this gate must have judged something
    `stage` : whose receipt holds the verdict; empty = the asset's own
    `of` : partition of that receipt where the asset has none (the name of the bundle)
    """

    asset: str
    name: str
    must_hold: str
    gate: str
    families: tuple[str, ...] = ()
    blocking: bool = True
    no_rules: str | None = None
    no_verdict: str | None = None
    optional_gate: bool = False
    stage: str = ""
    of: str | None = None

    @property
    def key(self) -> dg.AssetCheckKey:
        return dg.AssetCheckKey(dg.AssetKey(self.asset), self.name)


def _rules(
    asset: str, gate: str, blocking: bool = True, no_rules: str | None = None, of: str | None = None, **must_hold: str
) -> tuple[Check, ...]:
    """Checks that are each answered by the rules of the same name."""
    return tuple(Check(asset, name, text, gate, (name,), blocking, no_rules, of=of) for name, text in must_hold.items())


def _health(asset: str, stage: str = "") -> tuple[Check, ...]:
    """One check per family of rules of a health report."""

    def one(name: str, must_hold: str, *families: str) -> Check:
        return Check(asset, name, must_hold, "health", families or (name,), no_rules=NO_LIMIT, stage=stage)

    return (
        one("events_present", "There are events at all."),
        one("duplication_rate", "Few events are duplicates."),
        one("class_counts", "Every class has enough hits to learn and to judge.", "min_class_count", "min_counts"),
        one("required_labels", "Labels that the profile requires occur.", "require_label"),
        one("required_techniques", "Techniques that the profile requires occur.", "require_technique"),
        one("max_unknown_labels", "Few hits have labels that the taxonomy does not know."),
        one("max_rejected_rows", "Few rows are malformed."),
    )


CHECKS: tuple[Check, ...] = (
    *_rules(
        "rendered_audio",
        "render",
        render_matches_midi="Rendered onsets lie within 3 ms of the MIDI time, nothing clips, no file ends before its last note.",
    ),
    *_rules("raw_integrity", "raw_integrity", root="The raw folders are there, readable and not empty."),
    *_rules(
        "raw_integrity",
        "raw_integrity",
        no_rules="no checksum list",
        listed_files="Every file of the checksum list is there, unchanged as far as it was read.",
    ),
    *_rules(
        "raw_integrity",
        "raw_integrity",
        blocking=False,
        no_rules="no checksum list",
        unlisted_files="The checksum list names every file.",
    ),
    *_rules(
        "events",
        "ingest",
        schema="Every row keeps the event schema.",
        event_ids_unique="Every event id occurs once.",
        labels_known="Every label is in the taxonomy, an alias, or counted as unknown.",
        provenance_complete="Every session has a provenance row.",
        accounted="Every file was used, refused with a reason, or is out of scope; few enough were refused.",
    ),
    *_rules(
        "events",
        "ingest",
        blocking=False,
        yield_vs_last_run="About as many events as the last time.",
        quarantine_share="Few files are in quarantine.",
        onsets_in_file="Onsets lie inside their audio files.",
    ),
    Check(
        "events",
        "annotation_alignment",
        "Annotated onsets lie where the audio has them.",
        "annotation_alignment",
        (),
        False,
        no_verdict="not measured. Run: beatsight readiness align --annotations",
        optional_gate=True,
        stage="annotation_alignment",
    ),
    *_rules(
        "merged_manifest",
        "merge",
        conserves_rows="Rows in = rows out + rows that occurred twice.",
        sources_expected="No enabled dataset that lies here is missing.",
    ),
    Check(
        "provenance_audit",
        "provenance_audit",
        "Every event traces back to a session with files, a licence and an importer.",
        "provenance_audit",
    ),
    *_rules("crash_mapping", "crash_mapping", blocking=False, crash_coverage="Most crashes are told apart: the first from the second."),
    *_rules(
        "annotated_manifest",
        "annotate",
        rows_unchanged="No event was lost or added.",
        labels_canonical="Every label is a canonical component.",
        openness_range="Hi-hat openness lies in 0 (closed) to 1 (open).",
        required_techniques="The techniques that the profile requires occur.",
    ),
    *_rules(
        "splits",
        "splits",
        group_overlap="No group (take, song, kit recording) is in two splits.",
        audio_digest_overlap="No audio content is in two splits.",
        duplicate_midi_overlap="No performance is in two splits under two names.",
        official_split_respected="Official test material is nowhere else.",
        unassigned_events="Every event has a split.",
    ),
    *_rules(
        "splits",
        "splits",
        blocking=False,
        split_share="Shares of the splits are near what was asked for.",
        class_present="Every class occurs in every split.",
    ),
    *_rules("manifest_metrics", "metrics", blocking=False, drift="The labels are distributed about as in the version before."),
    *_health("manifest_health"),
    Check("health_diff", "no_regression", "Nothing is worse than in the release before.", "health_compare"),
    *_rules(
        "sampling_weights",
        "sampling",
        weights_in_bounds="Every weight lies between the bounds of its profile.",
        weights_match_manifest="There is one weight for every training event, and it names this manifest.",
    ),
    *_rules(
        "bundle_plan",
        "bundle_plan",
        of=TRAINING,
        audio_resolves="Every planned clip has its audio.",
        disk_budget="The disk has room for the clips.",
    ),
    *_rules("bundle_plan", "bundle_plan", blocking=False, of=TRAINING, disk_headroom="The disk has room to spare."),
    *_rules("bundle_smoke", "bundle_smoke", smoke_complete="A limited bundle was exported, checked and judged without a fault."),
    *_rules(
        "bundle",
        "bundle",
        of=TRAINING,
        bundle_complete="No planned clip is missing.",
        bundle_counts="Events = clips + what was left out, over splits, sources and outcomes.",
        clip_shape="Every clip and every part is as long as the plan says.",
        clip_digest_overlap="No clip is in two splits.",
    ),
    Check(
        "bundle",
        "bundle_digests",
        "Every byte is what was sealed.",
        "bundle_digests",
        ("bundle_digests",),
        stage="bundle_digests",
        of=TRAINING,
    ),
    *_health("bundle_health", f"health_bundle_{TRAINING}"),
    Check(
        "bundle_health",
        "clipped_share",
        "Hardly a sample lies beyond full scale.",
        "health",
        ("clipped_share",),
        stage=f"health_bundle_{TRAINING}",
    ),
    Check(
        "bundle_health",
        "missing_audio",
        "Every planned clip had its audio.",
        "health",
        ("missing_audio",),
        stage=f"health_bundle_{TRAINING}",
    ),
    *_rules(
        "feature_index",
        "feature_index",
        of=TRAINING,
        feature_shape="Every array has the shape that its definition says.",
        features_finite="Every value is a level.",
        keyed_by_content="Every part has the array that was made for it.",
    ),
    *_rules("interchange", "roundtrip", of=f"{TRAINING}.webdataset", roundtrip="What was written reads back as it was."),
    *_rules(
        "recording_features",
        "recording_features",
        feature_shape="Every array has the shape that its definition says.",
        features_finite="No value is NaN or infinite.",
        keyed_by_content="Every array is filed under the digests of its audio and its definition.",
    ),
    *_rules(
        "candidate_model",
        "candidate_model",
        loadable="A fresh process loads the checkpoint and gives the stored outputs.",
        parity="The checkpoint gives the outputs that training ended with.",
    ),
    *_rules("candidate_model", "candidate_model", blocking=False, training_curve="The loss fell, and the best epoch is not the first."),
    *_rules(
        "evaluation",
        "evaluation",
        no_rules=NO_LIMIT,
        pooled_f1="Onset F within 50 ms over all classes, all test hits pooled.",
        pooled_f1_drums5="The same over five drum families.",
        pooled_precision="Of the hits it reports, enough are there.",
        pooled_recall="Of the hits that are there, enough are reported.",
        class_recall="No judged class is deaf.",
        class_f1_drop="No class fell against the release before.",
    ),
    Check(
        "evaluation",
        "against_previous",
        "Not worse than the release before, by more than chance.",
        "evaluation",
        ("pooled_f1_against_champion",),
        no_rules=NO_LIMIT,
    ),
    *_rules("boundary_pack", "boundary_pack", both_edges="The pack has hits near both edges of the decision window."),
    Check("readiness", "alignment", "Audio of several microphones is aligned.", "alignment", optional_gate=True),
    Check("readiness", "boundary", "Hits at the edges of the decision window are found.", "boundary", optional_gate=True),
    Check("readiness", "openset", "Sounds that are no drums get low scores.", "openset", optional_gate=True),
    Check("readiness", "bootstrap", "Not worse than the release before, by more than chance.", "bootstrap", optional_gate=True),
    Check("readiness", "calibration", "A score of 0.8 is right eight times in ten.", "calibration", optional_gate=True),
    *_rules("promoted_model", "promotion", served_equals_judged="The served files are byte for byte those that were judged."),
    *_rules("transcriptions", "transcription", blocking=False, onset_f_measure="Transcriptions of songs with known truth reach the limit."),
)


def checks_of(*assets: str) -> tuple[Check, ...]:
    """Checks of some assets, in the order of the table."""
    return tuple(c for c in CHECKS if c.asset in assets)


def blocking_keys(*assets: str) -> list[dg.AssetCheckKey]:
    """Keys of the blocking checks of some assets: what a guard reads."""
    return [c.key for c in checks_of(*assets) if c.blocking]
