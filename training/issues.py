"""What is odd about preference records, and what becomes of it. Knows kinds and line numbers."""

from dataclasses import dataclass, field
from typing import Literal

from service.errors import DataError

Action = Literal["keep", "drop", "error"]
IssueKind = Literal["different_prompts", "identical", "contradictory", "identical_when_cut"]
"the last one is found when `fit` has cut records to token limits, the others when they are read"


@dataclass
class Issues:
    """What is odd about the data, by kind, with line numbers; goes into the report."""

    lines: dict[IssueKind, list[int]] = field(default_factory=dict)
    dropped: dict[IssueKind, int] = field(default_factory=dict)

    def add(self, kind: IssueKind, line: int, action: Action, file: str) -> bool:
        """Count one; True when the record is to be dropped. Raises DataError for "error"."""
        if action == "error":
            options = f'fit: data.issues.{kind} = "drop"'
            if kind != "identical_when_cut":
                options += f"; evaluate, compare and export: --drop {kind}"
            raise DataError(
                f"{file}:{line}: {DESCRIPTION[kind]}; mend the data, or drop such records "
                f"({options})",
                field=f"line {line}",
            )
        self.lines.setdefault(kind, []).append(line)
        if action == "drop":
            self.dropped[kind] = self.dropped.get(kind, 0) + 1
        return action == "drop"

    def report(self) -> dict[str, dict[str, object]]:
        """`count` and `dropped` are of comparisons; a line may hold several and is named once."""
        return {
            kind: {
                "count": len(lines),
                "dropped": self.dropped.get(kind, 0),
                "lines": list(dict.fromkeys(lines))[:100],
            }
            for kind, lines in self.lines.items()
        }


DESCRIPTION: dict[IssueKind, str] = {
    "different_prompts": "chosen and rejected do not belong to the same prompt; "
    "where they do, give the prompt in a column of its own",
    "identical": "chosen and rejected are identical",
    "contradictory": "the opposite choice stands elsewhere in the data",
    "identical_when_cut": "chosen and rejected become identical under the token limits",
}
