"""Which version of a registered model is its champion: the rule, its record and the way back.

Every decision is written on the version as tags `promotion.*`, with the numbers it rests on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cdcd import tracking
from cdcd.config import Promotion

CANDIDATE = "candidate"
CHAMPION = "champion"


class PromotionError(ValueError):
    """An alias that cannot be moved; the message says why and what to do."""


@dataclass(frozen=True)
class Score:
    """A mean with its interval, in the unit of the score; without an interval both ends are it."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def tags(self, name: str) -> dict[str, str]:
        """As tags of a version; `of_tags` reads them back exactly."""
        return {
            f"score.{name}": repr(self.mean),
            f"score.{name}.low": repr(self.low),
            f"score.{name}.high": repr(self.high),
        }

    @classmethod
    def of_tags(cls, name: str, tags: Mapping[str, str]) -> Score | None:
        """What `tags` wrote; None where there is none. Older versions hold the mean alone."""
        try:
            mean = float(tags[f"score.{name}"])
            low, high = (float(tags.get(f"score.{name}.{end}", mean)) for end in ("low", "high"))
        except (KeyError, ValueError):
            return None
        return cls(mean, low, high)


def read_scores(metrics_path: Path, system: str) -> dict[str, Score]:
    """The finite scores of a system in a metrics file; empty where it has no such system.

    Raises:
        PromotionError: the file is missing or holds no table.
    """
    try:
        systems = json.loads(metrics_path.read_text(encoding="utf-8"))["systems"]
        items = systems.get(system, {}).items()
    except FileNotFoundError:
        raise PromotionError(
            f"a registered model needs its scores: {metrics_path} does not exist; run `evaluate`"
        ) from None
    except (KeyError, TypeError, AttributeError, ValueError):
        raise PromotionError(
            f"{metrics_path} must hold a table `systems` with the scores; run `evaluate` again"
        ) from None
    found = {}
    for name, value in items:
        if isinstance(value, Mapping) and tracking.is_number(value.get("mean")):
            mean = float(value["mean"])
            ends = (value.get("ci_low"), value.get("ci_high"))
            low, high = (float(end) if tracking.is_number(end) else mean for end in ends)
            found[name] = Score(mean, low, high)
    return found


@dataclass(frozen=True)
class Verdict:
    """Whether a version becomes champion, and the sentence that says why."""

    is_promoted: bool
    reason: str


def judge(
    rule: Promotion,
    name: str,
    candidate: Score,
    control: Score | None,
    champion: tracking.ModelVersion | None,
    dataset: str,
) -> Verdict:
    """Apply the rule: above the control, and not worse than the champion beyond the interval.

    Args:
        rule: section `register.promotion`.
        name: of the main score; more is better.
        candidate: its score.
        control: the score of `rule.above_control` in the same table.
        champion: the version that holds the alias, if any.
        dataset: that the candidate was scored on.
    """
    if rule.above_control is not None:
        if control is None:
            return Verdict(False, f"the table has no {name} of {rule.above_control} to be above")
        if candidate.low <= control.mean:
            return Verdict(
                False, f"{name} {candidate} is not above {rule.above_control}, {control.mean:.3f}"
            )
    if champion is None:
        return Verdict(True, f"{name} {candidate}, the first champion")
    number = champion.version
    theirs = Score.of_tags(name, champion.tags)
    if theirs is None or champion.tags.get("dataset") != dataset:
        return Verdict(False, f"champion {number} has no {name} on {dataset} to compare with")
    reached = candidate.high if rule.within_interval else candidate.mean
    if reached < theirs.mean:
        return Verdict(
            False, f"{name} {candidate} is worse than {theirs.mean:.3f} of champion {number}"
        )
    return Verdict(
        True, f"{name} {candidate} is not worse than {theirs.mean:.3f} of champion {number}"
    )


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def record(
    version: tracking.ModelVersion, verdict: Verdict, champion: tracking.ModelVersion | None
) -> None:
    """Move the alias where the verdict says so, and write it on the version in any case."""
    tags = {"promotion.at": now(), "promotion.reason": verdict.reason}
    if verdict.is_promoted:
        tags["promotion.promoted"] = "true"
        if champion is not None:
            tags["promotion.replaced"] = champion.version
    else:
        tags["promotion.promoted"] = "false"
    # The record first: an alias must never point where nothing says why.
    tracking.set_version_tags(version, tags)
    if verdict.is_promoted:
        tracking.set_alias(version.name, CHAMPION, version.version)


def rollback(name: str, to: str | None = None) -> dict[str, Any]:
    """Give the alias `champion` back to an earlier version.

    Args:
        name: of the registered model.
        to: the version; None for the one that the champion replaced.

    Returns:
        name, version, and replaced: the version that was champion.

    Raises:
        PromotionError: no such model or version, or nothing to go back to.
        TrackingError: the registry cannot be opened.
    """
    champion = tracking.version_by_alias(name, CHAMPION)
    if champion is None and to is None:
        raise PromotionError(
            f"rollback needs a champion or --to: {name} has none; see `make ui` for its versions"
        )
    target = to or (champion.tags.get("promotion.replaced") if champion else None)
    if target is None:
        raise PromotionError(
            f"rollback needs an earlier champion: version {champion.version if champion else '?'} "
            f"of {name} replaced none; name a version with --to"
        )
    version = tracking.version_by_number(name, target)
    if version is None:
        raise PromotionError(
            f"--to must be a version of {name}: got {target}; see `make ui` for those that exist"
        )
    if champion is not None and champion.version == version.version:
        raise PromotionError(f"version {version.version} of {name} is champion already")
    tags = {"promotion.at": now(), "promotion.promoted": "true"}
    if champion is None:
        tags["promotion.reason"] = "made champion by hand"
    else:
        tags["promotion.reason"] = f"rolled back from version {champion.version}"
        tracking.set_version_tags(champion, {"promotion.rolled_back": now()})
    tracking.set_version_tags(version, tags)
    tracking.set_alias(name, CHAMPION, version.version)
    return {
        "name": name,
        "version": version.version,
        "replaced": champion.version if champion else None,
    }
